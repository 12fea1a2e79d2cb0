"""What the processes of test_gradients_on_processes.py do: they import it by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from process_work import UNET, VQVAE, place
from torch.nn.parallel import DistributedDataParallel

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler, PixelCNNPrior
from diffusion_bridge_vq.training import (
    E2EObjective,
    Objective,
    PixelCNNObjective,
    PriorObjective,
    ReconstructionLoss,
    VQObjective,
)

BATCH = 6  # of all processes together; halves of 3 differ in the 16 codes


def _vqvae(quantizer_type: str = "ema") -> GumbelVQModel:
    return GumbelVQModel(**VQVAE, quantizer_type=quantizer_type, ema_decay=0.9)


def _e2e(quantizer_type: str = "ema", classes: bool = False, **kwargs: Any) -> E2EObjective:
    unet = UNet2DModel(**UNET, num_class_embeds=4 if classes else None)
    return E2EObjective(
        _vqvae(quantizer_type), unet, OUBridgeScheduler(), **{"mode": "stable", "class_dropout": 0.5} | kwargs
    )


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "vq, gumbel": lambda: VQObjective(_vqvae("gumbel"), ReconstructionLoss(l1_weight=0.1)),
    "vq, ste": lambda: VQObjective(_vqvae("ste")),
    "vq, ema": lambda: VQObjective(_vqvae("ema")),
    "vq, adversarial": lambda: VQObjective(
        _vqvae("ste"), ReconstructionLoss(VQVAE["out_channels"], adversarial_weight=0.2, adversarial_from=1)
    ),
    "prior": lambda: PriorObjective(
        _vqvae(), UNet2DModel(**UNET, num_class_embeds=4), OUBridgeScheduler(), "elbo", class_dropout=0.5
    ),
    "e2e, before joining": lambda: _e2e(joint_from=3),
    "e2e, joining": lambda: _e2e(classes=True, joint_from=1, ramp_steps=2),
    "e2e, joint": lambda: _e2e("gumbel", weighting="min_snr"),
    "e2e, frozen": lambda: _e2e(classes=True, freeze_from=1),
    "e2e, decoder": lambda: _e2e(classes=True, mode="decoder", joint_from=1, decoder_fraction=1.0),  # of all images
    "e2e, paper": lambda: _e2e("gumbel", mode="paper", weighting="elbo"),
    "e2e, paper, eq. 5": lambda: _e2e("gumbel", mode="paper", weighting="elbo", regularization="kl"),
    "pixelcnn": lambda: PixelCNNObjective(
        _vqvae(), PixelCNNPrior(16, width=8, num_layers=2, sample_size=4, num_class_embeds=4), class_dropout=0.5
    ),
}


def save_steps(folder: Path) -> None:
    """
    Gradients and state of three steps of every objective, this process having its share of each batch, into `folder`.
    """
    rank, world = place()
    torch.save({name: _three_steps(make) for name, make in OBJECTIVES.items()}, folder / f"{rank}-of-{world}.pt")


def _three_steps(make: Callable[[], Objective]) -> dict[str, torch.Tensor]:
    rank, world = place()
    torch.manual_seed(0)
    objective = make().train()
    model: Any = objective
    if world > 1:
        unused = objective.has_unused_parameters
        model = DistributedDataParallel(objective, find_unused_parameters=unused)  # as in `train`
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(1)
    found: dict[str, torch.Tensor] = {}
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in range(3):
        images = torch.rand(BATCH, 1, 8, 8, generator=generator) * (step + 1) - 1
        labels = torch.randint(3, (BATCH,), generator=generator)
        objective.set_step(step)
        with _noise_of_the_whole_batch(rank, world):
            losses = model(images[mine], labels[mine]).losses
            sum(losses.values()).backward()
        found |= {f"{step} {name}": p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return found | {f"state {name}": value for name, value in objective.state_dict().items()}


@contextmanager
def _noise_of_the_whole_batch(rank: int, world: int) -> Iterator[None]:
    """
    All processes draw the same: the noise of every sample, of which each takes that of its own. Rows are samples, or
    positions sample by sample.
    """

    def own(draw: Callable[[tuple[int, ...]], torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        return draw((shape[0] * world, *shape[1:]))[rank * shape[0] : (rank + 1) * shape[0]]

    randn, rand, randint, exponential = torch.randn, torch.rand, torch.randint, torch.Tensor.exponential_

    def own_randint(high: int, size: tuple[int, ...], **kwargs: Any) -> torch.Tensor:
        if not size or size[0] * world != BATCH:  # a seed and the codebook's candidates aren't of a sample
            return randint(high, size, **kwargs)
        return own(lambda shape: randint(high, shape, **kwargs), size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: own(randn, tuple(x.shape)))
        patch.setattr(torch, "rand", lambda size, **kwargs: own(lambda shape: rand(shape, **kwargs), tuple(size)))
        patch.setattr(torch, "randint", own_randint)
        patch.setattr(
            torch.Tensor,
            "exponential_",
            lambda x, **kwargs: x.copy_(own(lambda shape: exponential(torch.empty(shape), **kwargs), tuple(x.shape))),
        )
        yield
