"""Looking at the reverse chain while it runs (Figures 8, 9 and 18 of the paper)."""

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
        steps (`Sequence[int]`): steps to look at, counted from 0; negative ones from the end, -1 being z_0.
        output_type (`str`, *optional*, defaults to `"pil"`): "pil", "np" or "pt", as in the pipelines.

    Raises:
        ValueError: no steps; when called, a step that the call doesn't have.
    """

    def __init__(self, steps: Sequence[int], output_type: str = "pil"):
        if not isinstance(steps, Sequence) or isinstance(steps, str) or not all(map(is_whole, steps)):
            raise ValueError(f"`steps` must be a list of whole numbers, got {steps!r}.")
        if not steps:
            raise ValueError("`steps` is empty: name at least one step to look at.")
        BridgePipeline._check_output_type(output_type)
        self.steps, self.output_type = list(steps), output_type
        self._images: dict[int, Any] = {}  # by position in `steps`

    @property
    def images(self) -> list[Any]:
        """One entry per step, in the order of `steps`; what each holds is set by `output_type`."""
        return [self._images[position] for position in sorted(self._images)]

    def __call__(self, pipe: BridgePipeline, step: int, timestep: torch.Tensor, kwargs: dict) -> dict:
        total = pipe.num_timesteps
        if any(not -total <= chosen < total for chosen in self.steps):
            raise ValueError(
                f"`steps` must lie in {-total}..{total - 1} for a call of {total} steps, got {self.steps}."
            )
        if step == 0:
            self._images.clear()  # of a call before
        for position, chosen in enumerate(self.steps):
            if chosen % total == step:  # with resampling a step comes again, and its last form counts
                latents = to_latents(pipe.scheduler, kwargs["latents"])
                self._images[position] = pipe.decode_latents(latents, self.output_type)
        return {}
