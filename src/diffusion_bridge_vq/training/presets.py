"""
Presets: per data set, the constructor arguments of the three components and the settings of a run.

`common` holds for every kind of run; "vq", "prior", "pixelcnn" and "e2e" override it for theirs. Sizes of images and
maps aren't among the arguments: they follow from `resolution`.
"""

import math
from typing import Any

Preset = dict[str, dict[str, Any]]


def _vqvae(channels: tuple[int, ...], latent_channels: int, codes: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": 2,
        "latent_channels": latent_channels,
        "num_vq_embeddings": codes,
        "quantizer_type": "ema",
        "scaling_factor": 1.0,
        **kwargs,
    }


def _small_vqvae(latent_channels: int, codes: int, channels: tuple[int, ...] = (32, 64, 64)) -> dict[str, Any]:
    """0.9M weights or fewer, for CPUs."""
    small = {"layers_per_block": 1, "norm_num_groups": 8, "mid_block_add_attention": False}
    return _vqvae(channels, latent_channels, codes, **small)


def _unet(channels: tuple[int, ...], latent_channels: int, **kwargs: Any) -> dict[str, Any]:
    return {
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "block_out_channels": list(channels),
        "down_block_types": ["AttnDownBlock2D"] * len(channels),
        "up_block_types": ["AttnUpBlock2D"] * len(channels),
        "layers_per_block": 2,
        **kwargs,
    }


def _small_unet(channels: tuple[int, ...], latent_channels: int) -> dict[str, Any]:
    """For CPUs: attention at the lowest resolution only, half the cost (docs/reports, bridge and PixelCNN)."""
    return _unet(
        channels,
        latent_channels,
        layers_per_block=1,
        attention_head_dim=64,
        down_block_types=["DownBlock2D"] * (len(channels) - 1) + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (len(channels) - 1),
    )


# The paper's process: DDPM's linear schedule, s = 1, predicts the noise.
_PAPER_BRIDGE = {"beta_schedule": "linear", "prediction_type": "epsilon"}


def _wide_noise_bridge(s: float) -> dict[str, Any]:
    """
    Stationary standard deviation s = eta / sqrt(2), so that codes in many channels are really destroyed; z_0-network.
    """
    return {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "eta": s * math.sqrt(2.0),
        "timestep_spacing": "trailing",
    }


_CIFAR10_RUN = {
    "dataset": "uoft-cs/cifar10",
    "resolution": 32,
    "channels": 3,
    "batch_size": 256,
    "random_flip": True,
    "lr_warmup_steps": 500,
    "learning_rate": 4e-4,
    "ema_decay": 0.999,
    "l1_weight": 0.1,
}

# The kinds of run that the paper's sizes share.
_PAPER_RUNS: Preset = {
    # The paper's PixelCNN: 15 layers of width 512. Early stopping ends the run, so the learning rate stays constant.
    "pixelcnn": {
        "lr_schedule": "constant_with_warmup",
        "learning_rate": 3e-4,
        "max_train_steps": 50_000,
        "holdout_fraction": 0.05,
        "eval_every": 250,
        "patience": 10,
        "prior": {"width": 512, "num_layers": 15, "kernel_size": 7, "dropout": 0.1},
    },
    "e2e": {"reconstruction_weight": 4.0, "joint_fraction": 0.2, "freeze_fraction": 0.8},
}


def _cifar10(latent_channels: int, codes: int, scheduler: dict[str, Any]) -> Preset:
    """8x8 positions, 57M weights in the U-Net."""
    return {
        "common": {
            **_CIFAR10_RUN,
            "max_train_steps": 100_000,
            "vqvae": _vqvae((128, 256, 256), latent_channels, codes),
            "unet": _unet((256, 464), latent_channels, norm_num_groups=16),
            "scheduler": scheduler,
        },
        "vq": {"max_train_steps": 20_000},
        **_PAPER_RUNS,
    }


def _photos(resolution: int, batch_size: int, encoder_channels: tuple[int, ...]) -> Preset:
    """
    Photos on one GPU: 16x16 positions, 64M weights in the U-Net. The autoencoder has the levels of VQGAN's (Esser et
    al. 2021) at half the width. The U-Net has attention at all levels but the first, as latent diffusion's (Rombach
    et al. 2022), and a quarter of its weights. The process is the one that `cifar10-tiny` was trained with.
    """
    return {
        "common": {
            "resolution": resolution,
            "channels": 3,
            "batch_size": batch_size,
            "random_flip": True,
            "lr_warmup_steps": 1000,
            "learning_rate": 2e-4,
            "ema_decay": 0.9995,
            "l1_weight": 0.1,
            "perceptual_weight": 1.0,
            "adversarial_weight": 0.1,
            "max_train_steps": 100_000,
            "vqvae": _vqvae(encoder_channels, 16, 1024),
            "unet": _unet(
                (192, 320, 448),
                16,
                norm_num_groups=16,
                attention_head_dim=64,
                down_block_types=["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
                up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            ),
            "scheduler": {**_wide_noise_bridge(2.0), "lambda_max_clipped": 4.0},
        },
        "vq": {"max_train_steps": 50_000},
        **_PAPER_RUNS,
    }


_SMALL_PIXELCNN = {
    "max_train_steps": 3000,
    "holdout_fraction": 0.05,
    "eval_every": 100,
    "patience": 10,
    "prior": {"width": 96, "num_layers": 8, "kernel_size": 7, "dropout": 0.1},
}
_SMALL_E2E = {"reconstruction_weight": 4.0, "joint_fraction": 0.3, "freeze_fraction": 0.5}

# What `--mode paper` changes in any preset, to be Algorithm 1 as printed: eq. 4 with its weight, L_t^reg with its
# own, a Gaussian likelihood, and a codebook that learns by gradient.
PAPER_MODE: dict[str, Any] = {
    "weighting": "elbo",
    "regularization_weight": 1.0,
    "l1_weight": 0.0,
    "vqvae": {"quantizer_type": "gumbel"},
}

# A U-Net that goes on: fractions of a preset's peak learning rate and of its steps of warm-up.
_FINE_TUNING = {"learning_rate": 0.5, "lr_warmup_steps": 0.2}

PRESETS: dict[str, Preset] = {
    # The demo: scikit-learn's handwritten digits (embedded), minutes on two CPU cores.
    "digits": {
        "common": {
            "dataset": "digits",
            "resolution": 16,
            "channels": 1,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 50,
            "ema_decay": 0.99,
            "max_train_steps": 1200,
            "log_every": 10,
            "image_every": 400,
            "checkpoint_every": 0,
            "l1_weight": 0.1,
            "num_inference_steps": 25,
            "vqvae": _small_vqvae(8, 64),
            "unet": _unet((96, 160), 8, layers_per_block=1),
            "scheduler": _wide_noise_bridge(1.5),
        },
        "pixelcnn": {
            "max_train_steps": 3000,
            "eval_every": 50,
            "patience": 10,
            "prior": {"width": 64, "num_layers": 6, "kernel_size": 7, "dropout": 0.5},
        },
        "e2e": _SMALL_E2E,
    },
    # Machinery and pictures on a CPU: CIFAR-10's shape with small networks.
    "cifar10-tiny": {
        "common": {
            **_CIFAR10_RUN,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 100,
            "ema_decay": 0.995,
            "max_train_steps": 1500,
            "log_every": 20,
            "image_every": 500,
            "checkpoint_every": 500,
            "vqvae": _small_vqvae(16, 256),
            "unet": _small_unet((128, 192), 16),
            # above its first level: 20 steps end as late as they can (docs/reports/2026-11-last-step.md)
            "scheduler": {**_wide_noise_bridge(2.0), "lambda_max_clipped": 4.0},
        },
        "pixelcnn": _SMALL_PIXELCNN,
        "e2e": _SMALL_E2E,
    },
    # That for miniImageNet's shape, 21x21 positions.
    "miniimagenet-tiny": {
        "common": {
            "resolution": 84,
            "channels": 3,
            "batch_size": 8,
            "random_flip": True,
            "lr_warmup_steps": 50,
            "learning_rate": 1e-3,
            "ema_decay": 0.99,
            "l1_weight": 0.1,
            "max_train_steps": 6000,
            "log_every": 20,
            "image_every": 500,
            "checkpoint_every": 500,
            "vqvae": _small_vqvae(16, 128, (16, 32, 64)),
            "unet": _small_unet((64, 128, 192), 16),
            "scheduler": _wide_noise_bridge(2.0),
        },
        "pixelcnn": _SMALL_PIXELCNN,
        "e2e": _SMALL_E2E,
    },
    # The paper's shapes: 8x8 positions, 128 channels, 256 codes.
    "cifar10": _cifar10(128, 256, _PAPER_BRIDGE),
    # The same with fewer channels, more noise and a z_0-network.
    "cifar10-wide-noise": _cifar10(32, 256, _wide_noise_bridge(3.0)),
    # That with two bits more per position: what decoded images lose is the floor of every prior.
    "cifar10-wide-noise-1024": _cifar10(32, 1024, _wide_noise_bridge(3.0)),
    # miniImageNet, 84x84 -> 21x21 positions, 32 channels, 128 codes.
    "miniimagenet": {
        "common": {
            "resolution": 84,
            "channels": 3,
            "batch_size": 128,
            "random_flip": True,
            "lr_warmup_steps": 500,
            "learning_rate": 2e-4,
            "ema_decay": 0.9995,
            "l1_weight": 0.1,
            "max_train_steps": 200_000,
            "vqvae": _vqvae((128, 256, 256), 32, 128),
            "unet": _unet(
                (256, 288, 384),
                32,
                norm_num_groups=16,
                down_block_types=["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
                up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            ),
            "scheduler": _PAPER_BRIDGE,
        },
        "vq": {"max_train_steps": 50_000},
        **_PAPER_RUNS,
    },
    # Your own photos on one GPU; not trained yet.
    "photos-64": _photos(64, 128, (64, 128, 256)),
    "photos-128": _photos(128, 64, (64, 128, 128, 256)),
}


# What a kind of run changes in every preset.
_OF_KIND: dict[str, dict[str, Any]] = {
    # A student starts from its teacher's weights, and its trajectories have no mirror images.
    "distill": {
        "random_flip": False,
        "batch_size": 128,
        "learning_rate": 3e-4,
        "lr_warmup_steps": 50,
        "ema_decay": 0.995,
        "max_train_steps": 4000,
    },
}


def preset_values(name: str, kind: str) -> dict[str, Any]:
    """
    Settings of preset `name` for a run of `kind` "vq", "prior", "distill", "pixelcnn" or "e2e".

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose from {', '.join(PRESETS)}.")
    return {**PRESETS[name]["common"], **_OF_KIND.get(kind, {}), **PRESETS[name].get(kind, {})}


def fine_tuning_values(values: dict[str, Any]) -> dict[str, Any]:
    """What a run changes in a preset's settings by itself when its U-Net is one that was trained before."""
    return {
        "learning_rate": values["learning_rate"] * _FINE_TUNING["learning_rate"],
        "lr_warmup_steps": round(values.get("lr_warmup_steps", 0) * _FINE_TUNING["lr_warmup_steps"]),
    }
