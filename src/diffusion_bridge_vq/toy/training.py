"""Training on the toy sequences of section 4.1, through the same objectives as images."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from tqdm.auto import tqdm

from ..evaluation.arguments import check_choice, check_count, check_model, check_number
from ..losses import Regularization
from ..schedulers import OUBridgeScheduler
from ..training.ema import AveragedWeights
from ..training.objectives import E2EObjective, Objective, PriorObjective
from .networks import PaperSequenceDenoiser, SequenceDenoiser, SequenceVQModel
from .walks import LENGTH, NUM_CODES, draw_toy_latents, draw_toy_sequences, toy_codebook

Network = Literal["residual", "paper"]


@dataclass(frozen=True)
class ToyConfig:
    """
    Settings of a toy run.

    Args:
        network (`str`): "residual", a [`SequenceDenoiser`] that predicts z_0, or "paper", a
            [`PaperSequenceDenoiser`] that predicts eps, with the paper's constant learning rate.
        end_to_end (`bool`): learn the codebook too, from random points of the unit circle (Figure 11), instead of
            keeping the true one.
        regularization (`str`): form of L_t^reg in end-to-end training.
        max_train_steps, batch_size (`int`), learning_rate (`float`): of Adam, on sequences drawn afresh.
        ema_decay (`float`): of the averaged weights, which are the result.

    Raises:
        TypeError, ValueError: a value of another kind, or out of range.
    """

    network: Network = "residual"
    end_to_end: bool = False
    regularization: Regularization = "gamma"
    max_train_steps: int = 3500
    batch_size: int = 512
    learning_rate: float = 2e-2
    ema_decay: float = 0.998

    def __post_init__(self) -> None:
        check_choice("network", self.network, get_args(Network))
        check_choice("regularization", self.regularization, get_args(Regularization))
        if not isinstance(self.end_to_end, bool):
            raise TypeError(f"`end_to_end` must be True or False, got {self.end_to_end!r}.")
        check_count("max_train_steps", self.max_train_steps)
        check_count("batch_size", self.batch_size)
        check_number("learning_rate", self.learning_rate, 0, inclusive=False)
        check_number("ema_decay", self.ema_decay, 0)
        if self.ema_decay >= 1:
            raise ValueError(f"`ema_decay` must be below 1, got {self.ema_decay}.")

    @classmethod
    def paper(cls, **overrides: Any) -> "ToyConfig":
        """The paper's network with its own optimization: 30 epochs of 10,000 sequences, here in batches of 64."""
        settings: dict[str, Any] = {
            "network": "paper",
            "max_train_steps": 4700,
            "batch_size": 64,
            "learning_rate": 1e-3,
        }
        return cls(**settings | overrides)


class ToyModel(NamedTuple):
    """A trained toy; `initial_codebook` (8, 2) is where the codebook started."""

    vqvae: SequenceVQModel
    unet: nn.Module
    scheduler: OUBridgeScheduler
    initial_codebook: torch.Tensor


def toy_scheduler(prediction_type: str = "sample") -> OUBridgeScheduler:
    """The paper's toy bridge: T = 50, theta = 2, eta = 0.1 (s = 0.05), delta_t = 1.5 / T."""
    beta = 1 - torch.tensor(-2 * 2.0 * 1.5 / 50, dtype=torch.float64).exp().item()
    return OUBridgeScheduler(
        num_train_timesteps=50, beta_start=beta, beta_end=beta, theta=2.0, eta=0.1, prediction_type=prediction_type
    )


def train_toy(config: ToyConfig, seed: int = 0) -> ToyModel:
    """
    Train as `config` says; everything random follows from `seed`.

    Raises:
        TypeError, ValueError: another kind of configuration or seed.
    """
    check_model("config", config, ToyConfig)
    check_count("seed", seed, 0)
    torch.manual_seed(seed)
    residual = config.network == "residual"
    scheduler = toy_scheduler("sample" if residual else "epsilon")
    unet = SequenceDenoiser(2, LENGTH) if residual else PaperSequenceDenoiser(2)
    vqvae = SequenceVQModel(2, NUM_CODES, commitment_weight=1.0)
    codebook = vqvae.quantize.embedding.weight
    with torch.no_grad():
        codebook.copy_(nn.functional.normalize(codebook) if config.end_to_end else toy_codebook())
    initial_codebook = codebook.detach().clone()
    objective: Objective
    if config.end_to_end:
        objective = E2EObjective(
            vqvae, unet, scheduler, "stable", regularization=config.regularization, regularization_weight=0.1
        )
    else:
        objective = PriorObjective(vqvae, unet, scheduler)
    trainable = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    lr_scheduler = get_scheduler(
        "cosine" if residual else "constant",
        optimizer,
        num_warmup_steps=100,
        num_training_steps=config.max_train_steps,
    )
    components = nn.ModuleList([vqvae, unet])
    ema = AveragedWeights(components, config.ema_decay)
    objective.train()
    for step in tqdm(range(config.max_train_steps), unit="step", disable=None):
        vqvae.quantize.temperature = _temperature(step / config.max_train_steps)
        z_0 = draw_toy_latents(draw_toy_sequences(config.batch_size))
        loss = torch.stack(list(objective(z_0).losses.values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        lr_scheduler.step()
        ema.update_parameters(components)
    averaged_vqvae, averaged_unet = ema.module.eval().children()
    return ToyModel(cast(SequenceVQModel, averaged_vqvae), averaged_unet, scheduler, initial_codebook)


def _temperature(progress: float) -> float:
    """
    Of the Gumbel-softmax: 1 at first, where every code is drawn now and then and finds a place of its own, then
    falling to 0.1, where codes settle on the data.
    """
    return 0.1 ** max(0.0, (progress - 0.3) / 0.7)
