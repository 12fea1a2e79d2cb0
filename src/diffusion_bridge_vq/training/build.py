"""From the settings of a run to its components and its objective."""

from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from ..losses import ReconstructionLoss
from ..models import CodeUNet2DModel, GumbelVQModel, PixelCNNPrior, check_channels, check_num_codes
from ..schedulers import OUBridgeScheduler
from .config import AutoencoderConfig, E2EConfig, PixelCNNConfig, PriorConfig, PriorRunConfig, RunConfig, VQConfig
from .objectives import E2EObjective, Objective, PixelCNNObjective, PriorObjective, VQObjective

logger = logging.get_logger(__name__)


def build_objective(config: RunConfig, num_classes: int | None = None) -> Objective:
    """
    Components and objective of a run, with fresh weights or those of `config.init_from`.

    Sizes follow from `config.resolution`, also those that loaded components carry on: pipelines draw what was trained.
    What else of `config` isn't what was loaded is named in a warning.

    Raises:
        ValueError: constructor arguments that a component refuses; no autoencoder in `init_from`, or a U-Net of other
            classes; class-conditional without labels.
    """
    pixels = {"sample_size": config.resolution, "in_channels": config.channels, "out_channels": config.channels}
    vqvae = _load(GumbelVQModel, config, "vqvae") or _build(GumbelVQModel, pixels | config.vqvae)
    if config.init_from is not None:
        if vqvae.config.sample_size != config.resolution:
            logger.warning(
                f"The autoencoder in {config.init_from} is one of {vqvae.config.sample_size} pixels, `resolution` is "
                f"{config.resolution}: the run goes on with that, and so will what it saves."
            )
        vqvae.register_to_config(sample_size=config.resolution)
    side = config.resolution // vqvae.downsampling_factor
    if isinstance(config, VQConfig):
        return VQObjective(vqvae, _reconstruction_loss(config))
    assert isinstance(config, PriorRunConfig)
    classes = {}
    if config.class_conditional:
        if num_classes is None:
            instead = "give `label_column`"
            if config.streaming and config.label_column is not None:
                instead = "bare integers are known only after all are read: load it without `streaming`"
            raise ValueError(f"`class_conditional` needs classes, but {config.dataset} has none; {instead}.")
        classes = {"num_class_embeds": num_classes + 1}  # the last is the null class
    if isinstance(config, PixelCNNConfig):
        fitting = {"num_codes": vqvae.config.num_vq_embeddings, "sample_size": side}
        prior = _build(PixelCNNPrior, fitting | config.prior | classes)
        check_num_codes(prior, vqvae)
        return PixelCNNObjective(vqvae, prior, config.class_dropout)
    assert isinstance(config, (PriorConfig, E2EConfig))
    scheduler = None
    unet = _load(UNet2DModel, config, "unet") if isinstance(config, E2EConfig) else None
    if unet is None:
        scheduler = _build(OUBridgeScheduler, config.scheduler)
        unet = _build_unet(config, {"sample_size": side} | config.unet | classes, vqvae, scheduler)
    else:
        scheduler = _load(OUBridgeScheduler, config, "scheduler")  # the process that the U-Net knows
        unet.register_to_config(sample_size=side)
        known, needed = (found.get("num_class_embeds") for found in (unet.config, config.unet | classes))
        if known != needed:
            raise ValueError(
                f"The U-Net in {config.init_from} has `num_class_embeds` {known}, this run needs {needed} "
                "(its classes and a null class, or None without `class_conditional`). Start from an autoencoder "
                "alone, or with the classes that the U-Net knows."
            )
    check_channels(unet, vqvae)
    if scheduler is None:
        scheduler = _build(OUBridgeScheduler, config.scheduler)
    if isinstance(config, PriorConfig):
        return PriorObjective(vqvae, unet, scheduler, config.weighting, config.class_dropout)
    steps = config.max_train_steps
    return E2EObjective(
        vqvae,
        unet,
        scheduler,
        mode=config.mode,
        weighting=config.weighting,
        class_dropout=config.class_dropout,
        reconstruction_weight=config.reconstruction_weight,
        reconstruction=_reconstruction_loss(config),
        regularization=config.regularization,
        regularization_weight=config.regularization_weight,
        encoder_gradient_weight=config.encoder_gradient_weight,
        ramp_steps=round(config.ramp_fraction * steps),
        joint_from=round(config.joint_fraction * steps),
        freeze_from=round(config.freeze_fraction * steps) if config.freeze_fraction < 1 else None,
    )


def _build_unet(
    config: PriorConfig | E2EConfig, arguments: dict[str, Any], vqvae: GumbelVQModel, scheduler: OUBridgeScheduler
) -> UNet2DModel:
    if not (isinstance(config, PriorConfig) and config.code_posterior):
        return _build(UNet2DModel, arguments)
    if scheduler.config.prediction_type != "sample":
        raise ValueError(
            f"`code_posterior` predicts z_0: `prediction_type` must be 'sample', got "
            f"{scheduler.config.prediction_type!r}; add it to `scheduler`."
        )
    sizes = {"num_codes": vqvae.config.num_vq_embeddings, "num_noise_levels": len(scheduler)}
    unet = _build(CodeUNet2DModel, arguments | sizes)
    check_channels(unet, vqvae)
    log_snr = scheduler.signal_to_noise(torch.arange(len(scheduler))).log()
    unet.set_process(vqvae.quantize.embedding.weight, log_snr, torch.tensor(scheduler.config.z_star))
    return unet


def _reconstruction_loss(config: AutoencoderConfig) -> ReconstructionLoss:
    return ReconstructionLoss(
        config.channels,
        l1_weight=config.l1_weight,
        perceptual_weight=config.perceptual_weight,
        perceptual_features=config.perceptual_features,
        adversarial_weight=config.adversarial_weight,
        adversarial_from=round(config.adversarial_fraction * config.max_train_steps),
    )


def _load(cls: type, config: RunConfig, name: str) -> Any:
    folder = config.init_from
    if folder is None:
        return None
    for candidate in (folder / name, folder / "pipeline" / name):
        if candidate.is_dir():
            if name == "unet" and cls.load_config(candidate)["_class_name"] != cls.__name__:  # type: ignore[attr-defined]
                raise ValueError(
                    f"The U-Net in {candidate} starts from codes that stand still, which end-to-end training moves: "
                    "start from its autoencoder alone, or from a prior without `code_posterior`."
                )
            loaded = cls.from_pretrained(candidate)  # type: ignore[attr-defined]
            pairs = [(key, loaded.config.get(key), wanted) for key, wanted in getattr(config, name).items()]
            if other := [f"{key} {found!r}, not {wanted!r}" for key, found, wanted in pairs if found != wanted]:
                logger.warning(f"The {name} in {folder} goes on as it is: {'; '.join(other)}.")
            return loaded
    if name == "vqvae":
        raise ValueError(f"There is no autoencoder in {folder}: expected {folder / 'vqvae'} or {folder / 'pipeline'}.")
    return None


def _build(cls: type, arguments: dict[str, Any]) -> Any:
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} doesn't take these arguments: {error}") from error
