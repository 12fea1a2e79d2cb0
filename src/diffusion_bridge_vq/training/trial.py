"""A dry run: a few steps in each phase of a run, and what they say of the whole."""

from typing import TYPE_CHECKING, Any

import psutil
import torch

from ..clock import synchronized_time
from .data import Batch, model_inputs
from .monitoring.memory import peak_memory, total_memory
from .monitoring.quantities import size
from .monitoring.screen import describe_estimate, phases_within
from .scaling import count_flops, describe_cost

if TYPE_CHECKING:
    from .trainer import Trainer

# On a CPU a batch may take minutes: there a step is timed with a part of it.
_FEW_IMAGES, _SECONDS = 2, 4.0


def try_phases(trainer: "Trainer") -> None:
    """
    Steps in each phase of a run, printed as they are made, and what the whole run will take. What needs most memory,
    or fails, may come late. On a GPU steps have whole batches; on a CPU a part, which time and memory are scaled from.

    Args:
        trainer (`Trainer`): of the run. What it trains is changed.
    """
    config, objective, device = trainer.config, trainer.objective, trainer.accelerator.device
    phases, batches = phases_within(config, objective), trainer.batches()
    ends = [*list(phases)[1:], config.max_train_steps]
    weights = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    fixed = psutil.Process().memory_info().rss + 3 * weights  # gradients and Adam's moments come with the first step
    seconds, memory, costs = 0.0, 0.0, []
    losses: dict[str, torch.Tensor] = {}
    for number, ((start, trained), end) in enumerate(zip(phases.items(), ends, strict=True), 1):
        trainer.accelerator.print(f"trying phase {number} of {len(phases)}, {trained} ...", flush=True)
        trial = _Trial(trainer, (start + end) // 2, fixed)
        found, needed, flops = trial.run(next(batches))
        costs.append((flops, found))
        seconds += found * (end - start) / config.max_train_steps
        memory = max(memory, needed)
        losses |= trainer.last_output.losses
    trainer.accelerator.print(describe_estimate(config, objective, seconds, memory))
    learned = sum(p.numel() for p in trainer.update.parameters)
    frozen = sum(p.numel() for p in objective.parameters()) - learned
    spread = trainer.accelerator.num_processes, trainer.accelerator.is_fsdp2
    trainer.accelerator.print(describe_cost(*max(costs), learned, frozen, *spread))
    if memory > total_memory(device):
        trainer.accelerator.print(
            f"This is more than the {size(total_memory(device))} available on {device}: take a smaller `batch_size` "
            "with `gradient_accumulation_steps`, or `gradient_checkpointing`."
        )
    terms = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
    trainer.accelerator.print(f"dry run: steps of all phases on {device} gave {terms}; nothing was written")


class _Trial:
    """Steps of one phase. `fixed`: bytes that the process has besides activations."""

    def __init__(self, trainer: "Trainer", place: int, fixed: float):
        self.trainer, self.place, self.fixed = trainer, place, fixed
        self.device = trainer.accelerator.device

    def run(self, batch: Batch) -> tuple[float, float, float]:
        """Seconds of an optimizer step, bytes, and floating-point operations."""
        config = self.trainer.config
        batch = self._encoded(batch)
        whole, few = config.batch_size, config.batch_size
        if self.device.type == "cpu":
            few = min(whole, _FEW_IMAGES)
        timed: list[float] = []
        flops = count_flops(lambda: timed.append(self._time(batch, few)))  # compiles and allocates, too
        images, seconds = few, timed[0]
        if self.device.type != "cpu" or seconds < _SECONDS:
            seconds = self._time(batch, few)
            more = min(whole, int(few * _SECONDS / seconds))
            if more > few:
                images, seconds = more, self._time(batch, more)
        memory: float = peak_memory(self.device)
        if self.device.type == "cpu":  # all but activations is there whatever the batch
            memory = self.fixed + max(0.0, memory - self.fixed) * whole / images
        parts = config.gradient_accumulation_steps
        return seconds * whole / images * parts, memory, flops * whole / few * parts

    def _time(self, batch: Batch, images: int) -> float:
        started = synchronized_time(self.device)
        self.trainer.step({name: tensor[:images] for name, tensor in batch.items()}, self.place)
        return synchronized_time(self.device) - started

    def _encoded(self, batch: Batch) -> Batch:
        """As the run gets its batches: what it encodes once isn't part of a step."""
        objective: Any = self.trainer.objective
        if objective.cached_input is None or "images" not in batch:
            return batch
        inputs = model_inputs(dict(batch))
        with torch.no_grad():
            encoded = {objective.cached_input: objective.encode(inputs["images"])}
        if objective.condition is not None:
            encoded["conditions"] = objective.condition.of_items(batch)
        return {name: tensor for name, tensor in batch.items() if name != "images"} | encoded
