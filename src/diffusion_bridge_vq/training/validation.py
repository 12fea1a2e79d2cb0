"""Losses on images that the run isn't trained on."""

from collections.abc import Mapping
from copy import copy

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.pixels import to_pixels
from .objectives import Objective
from .stopping import outlive_first_signal


class Validation:
    """
    The objective's losses on a validation split, with averaged weights.

    Noise is drawn from the same seed each time, so that two values differ by the weights alone. Every process takes
    its share of the images.

    Args:
        images (`Dataset`): as `load_images` gives them.
        batch_size (`int`), num_workers (`int`): of each process.
        seed (`int`): of the noise.
        accelerator (`Accelerator`): of the run.
    """

    def __init__(self, images: Dataset, batch_size: int, num_workers: int, seed: int, accelerator: Accelerator):
        share = range(accelerator.process_index, len(images), accelerator.num_processes)  # type: ignore[arg-type]
        self.loader = DataLoader(
            Subset(images, share), batch_size=batch_size, num_workers=num_workers, worker_init_fn=outlive_first_signal
        )
        self.seed, self.accelerator = seed, accelerator

    @torch.no_grad()
    def __call__(self, objective: Objective, averaged: Mapping[str, nn.Module]) -> dict[str, float]:
        """
        Means over all images: {"validation/TERM": value}.

        Args:
            objective (`Objective`): of the run; stays as it is.
            averaged (`Mapping[str, nn.Module]`): components that stand in for its own.
        """
        judged = copy(objective)
        judged._modules = {**objective._modules, **averaged}
        judged.training = False  # not eval(), which would reach the run's own components
        device = self.accelerator.device
        names: list[str] = []
        values: list[torch.Tensor] = []  # of every batch; they stay on the device, so that nothing waits for it
        weights: list[int] = []
        with torch.random.fork_rng(), self.accelerator.autocast():
            torch.manual_seed(self.seed)
            for batch in self.loader:
                labels = {"class_labels": batch["labels"].to(device)} if "labels" in batch else {}
                losses = judged(images=to_pixels(batch["images"].to(device)), **labels).losses
                names = list(losses)
                values.append(torch.stack([value.float() for value in losses.values()]))
                weights.append(len(batch["images"]))
        # float64 on the host, also across processes: MPS has none
        own = torch.tensor(weights).double()
        sums = [*(own @ torch.stack(values).cpu().double()).tolist(), own.sum().item()]
        *totals, n = (sum(parts) for parts in zip(*gather_object([sums]), strict=True))
        return {f"validation/{name}": total / n for name, total in zip(names, totals, strict=True)}
