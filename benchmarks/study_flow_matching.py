"""
What does flow matching have that the bridge lacks? On one tokenizer it comes nearer to the data, with more recall. The
bridge gets what flow matching does otherwise, one thing at a time. Rows of benchmarks/peers, with an equal number of
steps of training.

    python -m benchmarks.study_flow_matching --seeds 0 1 2 --output-dir outputs/flow-matching

Run again, it continues with what the output folder lacks. What was found: docs/reports/2026-12-flow-matching.md.
"""

import math
from typing import Any

import torch

from diffusion_bridge_vq.cli import errors_as_lines
from diffusion_bridge_vq.schedulers import OUBridgeScheduler

from .peers.arms import run_study
from .peers.data import Data
from .peers.latent_priors import FlowMatching
from .peers.ours import Bridge
from .peers.row import Row

_VELOCITY: dict[str, Any] = {"scheduler": {"prediction_type": "v_prediction"}}
_SCALE_1: dict[str, Any] = {"scheduler": {"eta": math.sqrt(2)}}


class MinSNR(Bridge):
    """Weight min(SNR, 5) on the error of z_0, instead of 1."""

    changes = {"weighting": "min_snr"}


class Velocity(Bridge):
    """The network predicts the velocity. That weights the error of z_0 by 1 + SNR."""

    changes = _VELOCITY


class Scale1(Bridge):
    """The noise has the standard deviation of flow matching's."""

    changes = _SCALE_1


def logit_normal(scheduler: OUBridgeScheduler) -> torch.Tensor:
    """
    Probabilities (T,) of timesteps whose log signal-to-noise ratio is as in diffusers' training of Stable Diffusion 3:
    -2 logit(sigma) with logit(sigma) ~ N(0, 1). The latents here have variance 1, as those of flow matching need.
    """
    ratio = scheduler.signal_to_noise(torch.arange(len(scheduler))).double().clamp(min=1e-12).log()
    width = -torch.gradient(ratio)[0]
    density = (-(ratio / 2).square() / 2).exp() * width
    return density / density.sum()


class LogitNormal(Bridge):
    """The times of training are flow matching's."""

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        probabilities = logit_normal(self.learner.objective.scheduler)

        def draw(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            timesteps = torch.multinomial(probabilities, len(latents), replacement=True)
            return timesteps, torch.randn_like(latents)

        self.learner.objective.draw = draw


class LogitNormalVelocity(LogitNormal):
    changes = _VELOCITY


class LogitNormalMinSNR(LogitNormal):
    changes = MinSNR.changes


class Clamped(Bridge):
    """Weight max(1, min(SNR, 5)) on the error of z_0. High noise keeps the weight that the bridge gives it."""

    changes = {"weighting": "clamped_snr"}


class AllThree(LogitNormal):
    """What is left between this and flow matching: the path between noise and data, and the sampler."""

    changes = {"scheduler": {**_VELOCITY["scheduler"], **_SCALE_1["scheduler"]}}


class Flow(FlowMatching):
    sampling_steps = 50  # fewer lose


ARMS: dict[str, type[Row]] = {
    "bridge": Bridge,
    "flow-matching": Flow,
    "velocity": Velocity,
    "min-snr": MinSNR,
    "logit-normal": LogitNormal,
    "scale-1": Scale1,
    "logit-normal-velocity": LogitNormalVelocity,
    "all-three": AllThree,
    "logit-normal-min-snr": LogitNormalMinSNR,
    "clamped": Clamped,
}


@errors_as_lines()
def main() -> None:
    run_study(__doc__ or "", ARMS, steps=1200, output_dir="outputs/flow-matching", sampling_steps=8)


if __name__ == "__main__":
    main()
