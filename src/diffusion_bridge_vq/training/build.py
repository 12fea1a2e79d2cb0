"""From the settings of a run to its components: fresh ones, or those of `init_from`. Objectives call it."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from .. import pretrained
from ..losses import ReconstructionLoss
from ..models import CodeUNet2DModel, GumbelVQModel, check_channels
from ..run_folder import RunFolder
from ..schedulers import OUBridgeScheduler
from .config import AutoencoderConfig, BridgeConfig, PriorRunConfig, RunConfig

logger = logging.get_logger(__name__)


def build_autoencoder(config: RunConfig) -> GumbelVQModel:
    """
    The autoencoder, for images of the run's resolution.

    Raises:
        ValueError: constructor arguments that it refuses; none in `init_from`.
    """
    if config.init_from is None:
        sizes = {"sample_size": config.resolution, "in_channels": config.channels, "out_channels": config.channels}
        return build_component(GumbelVQModel, sizes | config.vqvae)
    vqvae = load_component(GumbelVQModel, config, "vqvae")
    if vqvae is None:
        expected = RunFolder(config.init_from)
        raise ValueError(
            f"There is no autoencoder in {config.init_from}: expected {expected.autoencoder} or {expected.pipeline}."
        )
    if vqvae.config.in_channels != config.channels:
        raise ValueError(
            f"The autoencoder in {config.init_from} is for images with {vqvae.config.in_channels} channels, "
            f"`channels` is {config.channels}. Give `channels` {vqvae.config.in_channels}, or drop `init_from`."
        )
    if config.resolution % vqvae.downsampling_factor:
        raise ValueError(
            f"`resolution` must be divisible by {vqvae.downsampling_factor} for the autoencoder in "
            f"{config.init_from}, got {config.resolution}."
        )
    if vqvae.config.sample_size != config.resolution:
        logger.warning(
            f"The autoencoder in {config.init_from} is one of {vqvae.config.sample_size} pixels, `resolution` is "
            f"{config.resolution}: the run goes on with that, and so will what it saves."
        )
    vqvae.register_to_config(sample_size=config.resolution)
    return vqvae


def build_unet(
    config: BridgeConfig,
    vqvae: GumbelVQModel,
    scheduler: OUBridgeScheduler,
    classes: dict[str, int],
    code_posterior: bool = False,
) -> UNet2DModel:
    """
    A fresh U-Net for the latents of `vqvae`.

    Args:
        classes (`dict[str, int]`): from [`class_arguments`].
        code_posterior (`bool`, *optional*, defaults to `False`): a [`CodeUNet2DModel`], for the codes of `vqvae`.
    """
    arguments = {"sample_size": latent_side(config, vqvae)} | config.unet | classes
    if not code_posterior:
        return build_component(UNet2DModel, arguments)
    if scheduler.config.prediction_type != "sample":
        raise ValueError(
            f"`code_posterior` predicts z_0: `prediction_type` must be 'sample', got "
            f"{scheduler.config.prediction_type!r}; add it to `scheduler`."
        )
    sizes = {"num_codes": vqvae.config.num_vq_embeddings, "num_noise_levels": len(scheduler)}
    unet = build_component(CodeUNet2DModel, arguments | sizes)
    check_channels(unet, vqvae)
    log_snr = scheduler.signal_to_noise(torch.arange(len(scheduler))).log()
    unet.set_process(vqvae.quantize.embedding.weight, log_snr, torch.tensor(scheduler.config.z_star))
    return unet


def load_unet(
    config: BridgeConfig, vqvae: GumbelVQModel, classes: dict[str, int], class_names: Sequence[str] | None = None
) -> UNet2DModel | None:
    """
    The U-Net of `init_from`, for the latents of `vqvae`; None if there is none.

    Args:
        classes (`dict[str, int]`): from [`class_arguments`].
        class_names (`Sequence[str]`, *optional*): of the data, compared with the names that the U-Net was saved with.

    Raises:
        ValueError: it has other classes, or needs codes that don't move.
    """
    unet = load_component(UNet2DModel, config, "unet")
    if unet is None:
        return None
    unet.register_to_config(sample_size=latent_side(config, vqvae))
    known, needed = (found.get("num_class_embeds") for found in (unet.config, config.unet | classes))
    if known != needed:
        raise ValueError(
            f"The U-Net in {config.init_from} has `num_class_embeds` {known}, this run needs {needed} "
            "(its classes and a null class, or None without `class_conditional`). Start from an autoencoder "
            "alone, or with the classes that the U-Net knows."
        )
    assert config.init_from is not None
    learned = RunFolder(config.init_from).read_id2label()
    if classes and learned is not None and class_names is not None and list(learned.values()) != list(class_names):
        pairs = zip(learned.values(), class_names, strict=False)
        number, (old, new) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ValueError(
            f"The U-Net in {config.init_from} has learned other classes: its class {number} is {old!r}, that of the "
            f"data is {new!r}. Start from an autoencoder alone, or train on the classes that the U-Net knows."
        )
    return unet


def latent_side(config: RunConfig, vqvae: GumbelVQModel) -> int:
    """Height and width of the latents."""
    return config.resolution // vqvae.downsampling_factor


def class_arguments(config: PriorRunConfig, num_classes: int | None) -> dict[str, int]:
    """
    The constructor argument of a prior that has classes, nothing for one without.

    Raises:
        ValueError: class-conditional, but the data have no classes.
    """
    if not config.class_conditional:
        return {}
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
    return {"num_class_embeds": num_classes + 1}  # the last is the null class


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


def load_component(cls: type, config: RunConfig, name: str) -> Any:
    """
    The component `name` of `init_from`; None without it. Settings of the run that differ from it are named.

    Raises:
        ValueError: a U-Net for codes that don't move.
    """
    if config.init_from is None:
        return None
    folder = RunFolder(config.init_from).find_component(name)
    if folder is None:
        return None
    if name == "unet" and cls.load_config(folder)["_class_name"] != cls.__name__:  # type: ignore[attr-defined]
        raise ValueError(
            f"The U-Net in {folder} needs codes that don't change, but end-to-end training changes them: "
            "start from its autoencoder alone, or from a prior without `code_posterior`."
        )
    # GumbelVQModel checks its files itself, and takes those of a stock VQModel too.
    loaded = cls.from_pretrained(folder) if cls is GumbelVQModel else pretrained.load_component(cls, folder)
    pairs = [(key, loaded.config.get(key), wanted) for key, wanted in getattr(config, name).items()]
    if other := [f"{key} {found!r}, not {wanted!r}" for key, found, wanted in pairs if found != wanted]:
        logger.warning(f"The {name} in {config.init_from} goes on as it is: {'; '.join(other)}.")
    return loaded


def build_component(cls: type, arguments: dict[str, Any]) -> Any:
    """A component from constructor arguments; wrong ones are a ValueError."""
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} doesn't take these arguments: {error}") from error
