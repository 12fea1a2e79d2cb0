"""Looking at the reverse chain while it runs (Figures 8, 9 and 18 of the paper)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ..sampling import to_latents
from ..schedulers.bridge_settings import is_whole
from .bridge import BridgePipeline


class DenoisingChain:
    """
    A `callback_on_step_end` that keeps what the latents look like on the way: z_t -> nearest codes -> image.

    Works with generation and inpainting, and with stock schedulers, whatever coordinates they work in
    ([`to_latents`]).

    Example:

    ```py
    >>> chain = DenoisingChain(steps=[9, 19, 29, 39, 49])
    >>> pipe(batch_size=4, num_inference_steps=50, callback_on_step_end=chain)
    >>> chain.images[0]  # the four images after the tenth step
    ```

    Args:
        steps (`Sequence[int]` or `int`): steps to look at, counted from 0; negative ones from the end, -1 being z_0. A
            number is how many of them, evenly from the first to the last of the call, or all if it has fewer.
        output_type (`str`, *optional*, defaults to `"pil"`): "pil", "np" or "pt", as in the pipelines.

    Raises:
        ValueError: no steps; when called, a step that the call doesn't have.
    """

    def __init__(self, steps: Sequence[int] | int, output_type: str = "pil"):
        if isinstance(steps, Sequence):
            good = bool(steps) and all(map(is_whole, steps))
        else:
            good = is_whole(steps) and steps >= 1
        if not good:
            raise ValueError(f"`steps` must be a list of whole numbers, not empty, or how many, got {steps!r}.")
        BridgePipeline._check_output_type(output_type)
        self.steps, self.output_type = copy.copy(steps), output_type
        self._seen: dict[int, tuple[int, Any]] = {}  # step and images, by position

    @property
    def images(self) -> list[Any]:
        """One entry per step, in the order of `steps`; what each holds is set by `output_type`."""
        return [self._seen[position][1] for position in sorted(self._seen)]

    @property
    def image_steps(self) -> list[int]:
        """The step that each of `images` is of, counted from 0."""
        return [self._seen[position][0] for position in sorted(self._seen)]

    def __call__(self, pipe: BridgePipeline, step: int, timestep: torch.Tensor, kwargs: dict) -> dict:
        if step == 0:
            self._seen.clear()  # of a call before
        for position, chosen in enumerate(self._choose(pipe.num_timesteps)):
            if chosen == step:  # with resampling a step comes again, and its last form counts
                latents = to_latents(pipe.scheduler, kwargs["latents"])
                self._seen[position] = (step, pipe.decode_latents(latents, self.output_type))
        return {}

    def _choose(self, total: int) -> list[int]:
        """The steps to look at, of a call that has so many; some solvers take more than they are asked for."""
        if not isinstance(self.steps, Sequence):
            count = min(self.steps, total)
            return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]
        if any(not -total <= chosen < total for chosen in self.steps):
            raise ValueError(
                f"`steps` must lie in {-total}..{total - 1} for a call of {total} steps, got {self.steps}."
            )
        return [chosen % total for chosen in self.steps]
