"""What all rows on one data set share. Sizes are such that the networks of table A have equal weights within 15 %."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Setting:
    """
    A data set of the comparison.

    Attributes:
        name (`str`): of `--data`.
        preset (`str`): of the package: U-Net, autoencoder, batch size, averaging and learning rate.
        checkpoint (`Path`): whose autoencoder is the frozen tokenizer of table A, and the features "latents".
        seconds (`Mapping[str, float]`): CPU seconds of training of a row, by table.
        features (`str`): "latents", or the name of an extractor of the package.
        reference (`str`): split that samples are compared with.
        num_images (`int`): samples of a row, and real images.
        search_images (`int`): samples for each sampling setting that is tried.
        bridge_steps (`tuple[int, ...]`): numbers of sampling steps that the rows of a bridge try.
        transformer (`Mapping[str, int]`): `width`, `layers` and `heads` of the networks over codes.
        pixelcnn (`Mapping[str, Any]`): arguments of `PixelCNNPrior`.
        pixel_unet (`Mapping[str, Any]`): arguments of the `UNet2DModel` on pixels.
        autoencoder_losses (`Mapping[str, float]`): weights of the loss terms of every autoencoder of table B.
        autoencoder_fraction (`float`): of a row of table B with two stages, for the first.
        trajectories (`int`): of a bridge, for its student.
        few_step_guidance (`float`): guidance scale of these, which the student learns, and of fitted steps: one near
            the bridge's best.
        fitted_options (`Mapping[str, Any]`): options of the run of the row with fitted steps that differ from the
            preset's: what was found to pay on these images.
    """

    name: str
    preset: str
    checkpoint: Path
    seconds: Mapping[str, float]
    features: str
    reference: str
    num_images: int
    search_images: int
    bridge_steps: tuple[int, ...]
    transformer: Mapping[str, int]
    pixelcnn: Mapping[str, Any]
    pixel_unet: Mapping[str, Any]
    autoencoder_losses: Mapping[str, float]
    autoencoder_fraction: float
    trajectories: int
    few_step_guidance: float
    fitted_options: Mapping[str, Any]


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            name="digits",
            preset="digits",
            checkpoint=ROOT / "checkpoints" / "digits",
            seconds={"A": 300, "B": 300},
            features="latents",
            reference="train",  # the test split has 297 images
            num_images=1500,
            search_images=500,
            bridge_steps=(20, 8, 12, 50),
            transformer={"width": 256, "layers": 6, "heads": 4},
            pixelcnn={"width": 176, "num_layers": 6, "kernel_size": 7, "dropout": 0.5},
            pixel_unet={
                "block_out_channels": [64, 128, 192],
                "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
                "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
                "layers_per_block": 1,
                "attention_head_dim": 64,
            },
            autoencoder_losses={"l1_weight": 0.1},
            autoencoder_fraction=0.3,
            trajectories=2048,
            few_step_guidance=1.0,
            fitted_options={"weighting": "clamped_snr"},  # docs/reports/2026-12-flow-matching.md
        ),
        Setting(
            name="cifar10",
            preset="cifar10-tiny",
            checkpoint=ROOT / "checkpoints" / "cifar10-small",
            seconds={"A": 40 * 60, "B": 90 * 60},
            features="efficientnet-lite2",
            reference="test",
            num_images=5000,
            search_images=1500,
            bridge_steps=(12,),  # more gain nothing there: docs/reports/2026-11-sampling-steps.md
            transformer={"width": 320, "layers": 6, "heads": 5},
            pixelcnn={"width": 192, "num_layers": 8, "kernel_size": 7, "dropout": 0.1},
            pixel_unet={
                "block_out_channels": [64, 128, 192],
                "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
                "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
                "layers_per_block": 2,
                "attention_head_dim": 64,
            },
            autoencoder_losses={"l1_weight": 0.1, "perceptual_weight": 10.0, "adversarial_weight": 0.1},
            autoencoder_fraction=0.4,
            trajectories=6000,
            few_step_guidance=1.5,
            fitted_options={},
        ),
    )
}
