"""
Does a better shape of the latent space pay? While the tokenizer learns, `train_e2e.py --mode decoder` gets one more
term: its latents are aligned with features of a network that was trained on photos, or must be decoded to turned and
shrunk images when they are turned and shrunk themselves. Rows of benchmarks/peers, with an equal number of steps.

    python -m benchmarks.study_alignment --seeds 0 1 2 --output-dir outputs/alignment
    python -m benchmarks.study_alignment --data cifar10 --dataset path/to/cifar10 --steps 3000

Run again, it continues with what the output folder lacks. What was found: docs/reports/2026-11-alignment.md.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from diffusion_bridge_vq.cli import errors_as_lines
from diffusion_bridge_vq.losses import PerceptualLoss

from .peers.arms import run_study
from .peers.data import Data
from .peers.ours import BridgeEndToEnd
from .peers.row import Row

_TEMPERATURE = 0.1  # of soft assignments to codes


class Aligned(BridgeEndToEnd):
    """
    Adds weight * (1 - cosine) of a 1 x 1 convolution of softly assigned code vectors and EfficientNet-Lite0's features
    of the same positions, as GEAR does (arXiv 2606.32039) for an encoder that no diffusion loss moves.
    """

    weight = 0.1

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        vqvae = self.prior.objective.vqvae
        features = PerceptualLoss()
        with torch.no_grad():
            maps = features._features(torch.zeros(1, data.channels, data.resolution, data.resolution))
        self._level = [each.shape[-1] for each in maps].index(data.side)
        self.prior.projection = nn.Conv2d(vqvae.config.latent_channels, maps[self._level].shape[1], 1)
        self._features, self._latents_seen = features, torch.empty(0)
        # functions, because copies of a learner would copy the object of a bound method, with all its data
        vqvae.quantize.register_forward_pre_hook(lambda *call: self._remember(*call))
        learn = self.prior.forward

        def with_alignment(**tensors: torch.Tensor) -> torch.Tensor:
            loss = learn(**tensors)
            if self.prior.objective.codes_frozen:
                return loss
            return loss + self.weight * self._alignment(tensors["images"])

        self.prior.forward = with_alignment

    def _remember(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._latents_seen = arguments[0]

    def _alignment(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self._features._features(images.float() / 127.5 - 1)[self._level]
        codes = self.prior.objective.vqvae.quantize.float_codebook()
        z_e = self._latents_seen.permute(0, 2, 3, 1)
        distances = (z_e.unsqueeze(-2) - codes).square().mean(dim=-1)
        soft = (-distances / _TEMPERATURE).softmax(dim=-1) @ codes
        found = self.prior.projection(soft.permute(0, 3, 1, 2))
        return 1 - F.cosine_similarity(found, wanted, dim=1).mean()


class AlignedMore(Aligned):
    weight = 0.5


class Equivariant(BridgeEndToEnd):
    """
    In every second step the latents are turned by a multiple of 90 degrees and shrunk to 1/2, 3/4 or 1 of their size,
    and the decoded image is compared with the image that was treated alike (EQ-VAE, arXiv 2502.09509).
    """

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        objective = self.prior.objective
        self._turn: tuple[int, float] | None = None
        objective.vqvae.quantize.register_forward_pre_hook(lambda *call: self._move_latents(*call))
        objective.reconstruction.register_forward_pre_hook(lambda *call: self._move_images(*call))

    def _move_latents(self, quantizer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._turn = None
        if not quantizer.training or self.prior.objective.codes_frozen or torch.rand(()) < 0.5:
            return None
        self._turn = (int(torch.randint(4, ())), (2 + int(torch.randint(3, ()))) / 4)
        return self._moved(arguments[0]), *arguments[1:]

    def _move_images(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self._turn is None else (self._moved(arguments[0]), *arguments[1:])

    def _moved(self, maps: torch.Tensor) -> torch.Tensor:
        quarters, scale = self._turn or (0, 1.0)
        turned = torch.rot90(maps, quarters, (2, 3))
        return turned if scale == 1 else F.interpolate(turned, scale_factor=scale, mode="bilinear", antialias=True)


ARMS: dict[str, type[Row]] = {
    "as-it-is": BridgeEndToEnd,
    "aligned-0.1": Aligned,
    "aligned-0.5": AlignedMore,
    "equivariant": Equivariant,
}


@errors_as_lines()
def main() -> None:
    run_study(__doc__ or "", ARMS, steps=1000, output_dir="outputs/alignment", sampling_steps=12)


if __name__ == "__main__":
    main()
