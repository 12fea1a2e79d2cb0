"""What is looked at during a run: scores, losses, grids and evaluations of its averaged weights."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from ..config import RunConfig
from ..data import Images, model_inputs, preview_items
from ..ema import AveragedWeights
from ..objectives import Objective
from ..sharding import whole_copy
from .early_stopping import EarlyStopping
from .previews import GRID_IMAGES, draw_grids
from .validation import make_validation

Evaluate = Callable[[dict[str, Any], int], dict[str, float]]


class Monitor:
    """
    Looks at the averaged weights of a run, the best of them with early stopping. All processes call its methods.

    Args:
        config (`RunConfig`), accelerator (`Accelerator`), objective ([`Objective`]): of the run.
        ema ([`AveragedWeights`]): of what `objective` trains.
        images (`Images`): for reconstructions.
        held_out (`Iterable`, *optional*): batches for early stopping.
        evaluate (`Callable`, *optional*): see `train`.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        ema: AveragedWeights,
        images: Images,
        held_out: Any,
        evaluate: Evaluate | None,
    ):
        self.config, self.accelerator, self.objective, self.ema = config, accelerator, objective, ema
        self.held_out, self._evaluate = held_out, evaluate
        self.preview = preview_items(images, GRID_IMAGES // 2)
        self.validation = make_validation(config, accelerator, images)
        rule = objective.early_stopping
        self.stopping = EarlyStopping(ema.module, rule.patience) if rule is not None else None

    def held_out_score(self) -> dict[str, float]:
        """The score of the newest averages, by name, the same on all processes; the weights of the best are kept."""
        assert self.stopping is not None and self.objective.early_stopping is not None
        components = self.objective.components(dict(whole_copy(self.ema.module).named_children()))
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[]), self.accelerator.autocast():  # a DataLoader draws a seed
            inputs = (model_inputs(batch, device) for batch in self.held_out)
            score = self.objective.held_out_score(components, inputs)
        # all processes must stop at the same step, whatever their rounding
        score = broadcast(torch.tensor(score, device=device)).item()
        self.stopping.update(score, self.ema.module)
        return {f"heldout/{self.objective.early_stopping.score}": score}

    @property
    def exhausted(self) -> bool:
        """Whether early stopping ends the run."""
        return self.stopping is not None and self.stopping.exhausted

    def validate(self) -> dict[str, float]:
        """Losses on the validation split."""
        assert self.validation is not None
        return self.validation(self.objective, self._averaged())

    def grids(self) -> dict[str, torch.Tensor]:
        """Pixels of reconstructions (each after its original) and samples; nothing but on the main process."""
        components = self.objective.components(self._averaged())
        if not self.accelerator.is_main_process:
            return {}
        steps, seed = self.config.num_inference_steps, self.config.seed
        return draw_grids(self.objective, components, self.preview, steps, seed, self.accelerator.device)

    def evaluate(self, done: int) -> dict[str, float]:
        """What the caller's function finds at step `done`, by name; nothing but on the main process."""
        if self._evaluate is None:
            return {}
        components = self.components(self.accelerator.device)
        if not self.accelerator.is_main_process:
            return {}
        with torch.random.fork_rng(), torch.no_grad():
            return {f"evaluation/{name}": value for name, value in self._evaluate(components, done).items()}

    def components(self, device: torch.device | str) -> dict[str, Any]:
        """What the run saves, by name, in eval mode: the modules themselves, but a copy of what FSDP has split."""
        components = self.objective.components(self._averaged())
        for component in components.values():
            if isinstance(component, torch.nn.Module):
                component.to(device).eval()
        return components

    def _averaged(self) -> dict[str, torch.nn.Module]:
        """What is trained, by name, with the weights of the moment or the best ones, in eval mode."""
        best = self.stopping is not None and self.stopping.started
        module: Any = whole_copy(self.stopping.best if best else self.ema.module)  # type: ignore[union-attr]
        return dict(module.named_children())
