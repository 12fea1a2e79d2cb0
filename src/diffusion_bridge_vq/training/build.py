"""From the settings of a run to its components: fresh ones, or those that it starts from. Objectives call it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from ..data import ImageCondition
from ..data.paths import looks_local
from ..losses import ReconstructionLoss
from ..models import CodeUNet2DModel, GumbelVQModel, check_channels, count_condition_channels
from ..models.code_unet import check_process
from ..schedulers import OUBridgeScheduler
from .config import RunConfig
from .kinds import AutoencoderConfig, BridgeConfig, PriorRunConfig
from .starting_point import check_images, load_autoencoder, load_scheduler, load_unet, refuse_other_settings

logger = logging.get_logger(__name__)


def build_autoencoder(config: RunConfig) -> GumbelVQModel:
    """
    The autoencoder, for images of the run's resolution.

    Raises:
        ValueError: constructor arguments that it refuses; none where the run starts from, or one for other images.
    """
    place = config.autoencoder_from
    if place is None:
        sizes = {"sample_size": config.resolution, "in_channels": config.channels, "out_channels": config.channels}
        return build_component(GumbelVQModel, sizes | config.vqvae)
    if place == config.init_from and not looks_local(place):
        raise ValueError(
            f"There is no folder {place}, and `init_from` takes none of the Hub: fetch it with "
            f"`hf download {place.as_posix()} --local-dir FOLDER`, and give that. `vqvae_from` takes ids, too."
        )
    vqvae = load_autoencoder(place)
    refuse_other_settings(vqvae, "vqvae", config)
    check_images(vqvae, config)
    if vqvae.config.sample_size != config.resolution:
        logger.warning(
            f"The autoencoder in {place} is one of {vqvae.config.sample_size} pixels, `resolution` is "
            f"{config.resolution}: the run goes on with that, and so will what it saves."
        )
    vqvae.register_to_config(sample_size=config.resolution)
    return vqvae


class DiffusionPrior(NamedTuple):
    """`start`: where the U-Net comes from, in words; "" for a fresh one."""

    unet: UNet2DModel
    scheduler: OUBridgeScheduler
    start: str


def build_diffusion_prior(
    config: BridgeConfig, vqvae: GumbelVQModel, num_classes: int | None, class_names: Sequence[str] | None
) -> DiffusionPrior:
    """
    The U-Net of `init_from` and its process, or a fresh U-Net and the process of the settings.

    Args:
        num_classes (`int`, *optional*), class_names (`Sequence[str]`, *optional*): of the data.

    Raises:
        ValueError: see [`load_unet`] and [`load_scheduler`]; constructor arguments that a component refuses;
            class-conditional without classes.
    """
    classes = prior_classes(config, num_classes)
    extra = _condition_channels(config, vqvae)
    loaded = load_unet(config, vqvae, classes, class_names, extra)
    scheduler = load_scheduler(config) or build_component(OUBridgeScheduler, config.scheduler)
    unet, start = loaded or (_build_unet(config, vqvae, scheduler, classes, extra), "")
    if any(getattr(module, "heads", 1) < 1 for module in unet.modules()):
        raise ValueError(
            f"`unet` has {unet.config.attention_head_dim} channels for each attention head, more than a block has: "
            "give a smaller `attention_head_dim`, or more `block_out_channels`."
        )
    check_channels(unet, vqvae, extra)
    check_process(unet, vqvae, scheduler)
    return DiffusionPrior(unet, scheduler, start)


def _build_unet(
    config: BridgeConfig,
    vqvae: GumbelVQModel,
    scheduler: OUBridgeScheduler,
    num_classes: int | None,
    condition_channels: int = 0,
) -> UNet2DModel:
    """A fresh U-Net for the latents of `vqvae`, or for its codes, and a map of conditions."""
    channels = vqvae.config.vq_embed_dim or vqvae.config.latent_channels
    sizes = {"sample_size": latent_side(config, vqvae), "in_channels": channels, "out_channels": channels}
    arguments = sizes | config.unet | class_arguments(num_classes)
    if condition_channels:
        arguments["in_channels"] += condition_channels
    if not config.wants_code_unet:
        return build_component(UNet2DModel, arguments)
    if scheduler.config.prediction_type != "sample":
        raise ValueError(
            f"`code_posterior` predicts z_0: `prediction_type` must be 'sample', got "
            f"{scheduler.config.prediction_type!r}; add it to `scheduler`."
        )
    codes = {"num_codes": vqvae.config.num_vq_embeddings, "num_noise_levels": len(scheduler)}
    unet = build_component(CodeUNet2DModel, arguments | codes)
    check_channels(unet, vqvae)
    log_snr = scheduler.signal_to_noise(torch.arange(len(scheduler))).log()
    unet.set_process(vqvae.quantize.embedding.weight, log_snr, torch.tensor(scheduler.config.z_star))
    return unet


def read_condition(config: BridgeConfig) -> ImageCondition | None:
    """What the run draws from."""
    if config.condition is None:
        return None
    return ImageCondition.parse(config.condition, config.channels, config.resolution)


def _condition_channels(config: BridgeConfig, vqvae: GumbelVQModel) -> int:
    """Channels of the map of the run's condition, 0 without one."""
    condition = read_condition(config)
    if condition is None:
        return 0
    return count_condition_channels(condition.channels, condition.side, latent_side(config, vqvae))


def latent_side(config: RunConfig, vqvae: GumbelVQModel) -> int:
    """Height and width of the latents."""
    return config.resolution // vqvae.downsampling_factor


def prior_classes(config: PriorRunConfig, num_classes: int | None) -> int | None:
    """
    Number of classes of the run's prior; None for one without.

    Raises:
        ValueError: class-conditional, but the data have no classes.
    """
    if not config.class_conditional:
        return None
    if num_classes is None or num_classes < 2:
        instead = (
            "give `label_column` for a table, put the images of each class into a folder of their own, or drop "
            "`class_conditional`"
        )
        if config.streaming and config.label_column is not None:
            instead = "bare integers are known only after all are read: load it without `streaming`"
        if config.encoded_data is not None:
            instead = "encode the images with their labels, or drop `class_conditional`"
        data = config.encoded_data or config.dataset
        count = "none" if num_classes is None else "only one"
        raise ValueError(f"`class_conditional` needs classes, but {data} has {count}; {instead}.")
    return num_classes


def class_arguments(num_classes: int | None) -> dict[str, int]:
    """The constructor argument of a prior that has classes, nothing for one without."""
    return {} if num_classes is None else {"num_class_embeds": num_classes + 1}  # the last is the null class


def build_reconstruction_loss(config: AutoencoderConfig) -> ReconstructionLoss:
    """The terms of decoded images."""
    return ReconstructionLoss(
        config.channels,
        l1_weight=config.l1_weight,
        perceptual_weight=config.perceptual_weight,
        perceptual_features=config.perceptual_features,
        adversarial_weight=config.adversarial_weight,
        adversarial_from=round(config.adversarial_fraction * config.max_train_steps),
    )


def build_component(cls: type, arguments: dict[str, Any]) -> Any:
    """A component from constructor arguments; wrong ones are a ValueError."""
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} doesn't take these arguments: {error}") from error
