"""What a run starts from: the components in `init_from` that its kind trains or needs, or an autoencoder alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel, VQModel

from .. import pretrained
from ..data.paths import looks_local, suggest_path
from ..models import CodeUNet2DModel, GumbelVQModel, check_channels, replace_classes, replace_condition
from ..models.network_sizes import count_classes
from ..run_folder import RunFolder, is_checkpoint
from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import is_student
from .config import RunConfig
from .kinds import BridgeConfig

# Settings of a scheduler that training doesn't depend on: they may be others than those that the U-Net was saved with.
_SAMPLING_ONLY = (
    "variance_type", "clip_sample", "clip_sample_range", "timestep_spacing", "steps_offset", "lambda_max_clipped",
    "few_step_timesteps",
)  # fmt: skip
_MOST_NAMES = 6  # in messages


def load_autoencoder(place: Path) -> GumbelVQModel:
    """
    The autoencoder of a run, of a pipeline, or in a folder of its own, or of a repository on the Hub. A stock VQModel
    loads, too: its normalizer leaves latents as they are until it knows them (`GumbelVQModel.use_statistics`).

    Args:
        place (`Path`): a folder, or "user/model".

    Raises:
        ValueError: there is none, one of another class, or it is damaged.
        OSError: no such repository or no access to it, or the download failed.
    """
    folder = place if looks_local(place) else pretrained.fetch_autoencoder(place.as_posix())
    found = RunFolder(folder).find_component("vqvae")
    config = folder / GumbelVQModel.config_name  # of a run, it has no class
    if found is None and config.is_file() and "_class_name" in pretrained.read_json(config):
        found = folder
    unfinished = folder.parent.parent if is_checkpoint(folder) else folder
    if found is None and RunFolder(unfinished).checkpoints.is_dir():
        raise ValueError(
            f"The run in {unfinished} isn't over: write its pipeline with `python examples/export_checkpoint.py "
            f"{folder} --output-dir FOLDER`, and give that folder."
        )
    if found is None:
        raise ValueError(
            f"There is no autoencoder in {folder}: expected {folder / 'vqvae'} or {folder / 'pipeline'}. "
            f"{suggest_path(folder)}".rstrip()
        )
    class_name = pretrained.read_json(found / GumbelVQModel.config_name).get("_class_name")
    if class_name == GumbelVQModel.__name__:
        vqvae: GumbelVQModel = pretrained.load_component(GumbelVQModel, found)
    elif class_name == VQModel.__name__:  # has the same keys
        vqvae = GumbelVQModel.from_pretrained(found)
    else:
        raise ValueError(f"{found} has {class_name}, expected GumbelVQModel, or VQModel of diffusers.")
    return vqvae


def check_images(vqvae: GumbelVQModel, config: RunConfig) -> None:
    """
    Raises:
        ValueError: the autoencoder is for images of another number of channels than the run's, or can't halve them.
    """
    place = config.autoencoder_from
    if vqvae.config.in_channels != config.channels:
        raise ValueError(
            f"The autoencoder in {place} is for images with {vqvae.config.in_channels} channels, "
            f"`channels` is {config.channels}. Give `channels` {vqvae.config.in_channels}, or another autoencoder."
        )
    if config.resolution % vqvae.downsampling_factor:
        raise ValueError(
            f"`resolution` must be divisible by {vqvae.downsampling_factor} for the autoencoder in {place}, got "
            f"{config.resolution}."
        )


def load_unet(
    config: BridgeConfig,
    vqvae: GumbelVQModel,
    num_classes: int | None,
    class_names: Sequence[str] | None = None,
    condition_channels: int = 0,
) -> tuple[UNet2DModel, str] | None:
    """
    The U-Net of `init_from` for this run's latents, classes and condition, and a line that says what became of those
    that it had.

    Rows of the class embedding stay with the names of their classes, and the null class stays. Without a condition it
    predicts what it predicted before, and with a new one, too.

    Args:
        vqvae ([`GumbelVQModel`]): of the run.
        num_classes (`int`, *optional*): of the data; None for a prior without classes.
        class_names (`Sequence[str]`, *optional*): their names.
        condition_channels (`int`, *optional*, defaults to 0): of the map of the run's condition.

    Returns:
        `tuple[UNet2DModel, str]`; None if `init_from` has no U-Net.

    Raises:
        ValueError: settings in `unet` that differ from it; other channels than the latents'; it gives codes a
            probability, but the run changes them, or it doesn't and `code_posterior` asks for it.
    """
    folder = config.find_start("unet")
    if folder is None:
        return None
    assert config.init_from is not None
    found = pretrained.read_json(folder / UNet2DModel.config_name).get("_class_name")
    gives_codes = found == CodeUNet2DModel.__name__
    if gives_codes and not config.keeps_codes:
        raise ValueError(
            f"The U-Net in {folder} needs codes that don't change, but end-to-end training may change them: "
            "start from its autoencoder alone, with `vqvae_from`, or from a prior without `code_posterior`."
        )
    if not gives_codes and config.wants_code_unet:
        raise ValueError(
            f"The U-Net in {folder} is a {found}, but `code_posterior` asks for a CodeUNet2DModel: drop it, or start "
            "from the autoencoder alone, with `vqvae_from`."
        )
    if gives_codes and condition_channels:
        raise ValueError(
            f"The U-Net in {folder} is a {found}, which takes no `condition`: start from the autoencoder alone, with "
            "`vqvae_from`."
        )
    unet = pretrained.load_component(CodeUNet2DModel if gives_codes else UNet2DModel, folder)
    refuse_other_settings(unet, "unet", config)
    check_channels(unet, vqvae, max(0, unet.config.in_channels - unet.config.out_channels))
    unet.register_to_config(sample_size=config.resolution // vqvae.downsampling_factor)
    learned = RunFolder(config.init_from).read_id2label()
    said = _fit_classes(unet, num_classes, class_names, None if learned is None else list(learned.values()))
    said += _fit_condition(unet, config, condition_channels)
    return unet, f"The U-Net in {config.init_from} goes on. {said}".rstrip()


def load_scheduler(config: BridgeConfig) -> OUBridgeScheduler | None:
    """
    The process that the U-Net of `init_from` was trained with; one of diffusers' schedulers becomes a bridge with the
    same noise levels. None if there is no scheduler.

    Raises:
        ValueError: settings in `scheduler` that would change the process; a scheduler that isn't such a process.
    """
    folder = config.find_start("scheduler")
    if folder is None:
        return None
    name = pretrained.read_json(folder / OUBridgeScheduler.config_name).get("_class_name")
    if name == OUBridgeScheduler.__name__:
        scheduler = pretrained.load_component(OUBridgeScheduler, folder)
        if is_student(scheduler):
            raise ValueError(
                f"The network in {config.init_from} is a student, which draws in few steps: training it on would undo "
                "that. Go on from its teacher, and distill that again."
            )
    elif name in OUBridgeScheduler._compatibles:
        stock = pretrained.load_component(getattr(diffusers, str(name)), folder)
        scheduler = OUBridgeScheduler.from_config(stock.config)
        levels, made = stock.alphas_cumprod.double(), scheduler.alphas_cumprod.double()
        if levels.shape != made.shape or not torch.allclose(levels, made, rtol=1e-4, atol=1e-6):
            raise ValueError(
                f"The {name} in {folder} has noise levels that its betas don't give (`rescale_betas_zero_snr`?): no "
                "bridge has them. Start from the autoencoder alone, with `vqvae_from`."
            )
    else:
        raise ValueError(
            f"The scheduler in {folder} is a {name}, whose process isn't that of a bridge: expected an "
            f"OUBridgeScheduler or one of {', '.join(OUBridgeScheduler._compatibles[:3])}, ... Start from the "
            "autoencoder alone, with `vqvae_from`."
        )
    own = {key: value for key, value in config.scheduler.items() if key in _SAMPLING_ONLY}
    refuse_other_settings(scheduler, "scheduler", config, without=own)
    if scheduler.config.few_step_timesteps is not None:  # fitted to the weights that change now
        own = {"few_step_timesteps": None} | own
    return OUBridgeScheduler.from_config(scheduler.config, **own) if own else scheduler


def refuse_other_settings(loaded: Any, name: str, config: RunConfig, without: Any = ()) -> None:
    """
    Raises:
        ValueError: the run's settings of the component `name` differ from those of the loaded one.
    """
    asked = {key: value for key, value in getattr(config, name).items() if key not in without}
    pairs = [(key, loaded.config.get(key), value) for key, value in asked.items()]
    other = [f"{key} {value!r} instead of {found!r}" for key, found, value in pairs if not _same(found, value)]
    if other:
        source = config.vqvae_from or config.init_from
        instead = "" if name == "vqvae" else ", or start from the autoencoder alone, with `vqvae_from`"
        raise ValueError(
            f"The {name} in {source} keeps its settings, but `{name}` asks for {', '.join(other)}: leave that "
            f"out{instead}."
        )


def _same(one: Any, other: Any) -> bool:
    one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
    return bool(one == other)


def _fit_classes(
    unet: UNet2DModel, num_classes: int | None, names: Sequence[str] | None, learned: Sequence[str] | None
) -> str:
    """Make the U-Net one of these classes; says what became of those that it had."""
    had = count_classes(unet)
    if had is None or num_classes is None:
        if had == num_classes:
            return ""
        replace_classes(unet, num_classes)
        if num_classes is None:
            return f"It loses its {had} classes: it goes on as its null class, which was trained on all of them."
        return f"It gets {num_classes} classes with fresh rows; the network without classes is its null class."
    if names is None or learned is None:
        if had == num_classes:
            return "" if names is None else f"Its {had} classes have no names: they are kept by number."
        replace_classes(unet, num_classes)
        return f"Its {had} classes have no names to compare: each of the {num_classes} gets a fresh row."
    if list(names) == list(learned):
        return ""
    kept = {number: learned.index(name) for number, name in enumerate(names) if name in learned}
    replace_classes(unet, num_classes, kept)
    groups = {
        "kept": [name for name in names if name in learned],
        "new, with fresh rows": [name for name in names if name not in learned],
        "dropped": [name for name in learned if name not in names],
    }
    said = (f"{what}: {_list_some(group)}" for what, group in groups.items() if group)
    return f"Classes {'; '.join(said)}."


def _fit_condition(unet: UNet2DModel, config: BridgeConfig, channels: int) -> str:
    """Make the U-Net draw from the run's condition, if any; says what became of the one that it had."""
    assert config.init_from is not None
    had, old = RunFolder(config.init_from).read_condition(), unet.config.in_channels - unet.config.out_channels
    if (had, old) == (config.condition, channels) or channels == old == 0:
        return ""
    replace_condition(unet, channels)
    dropped = f" It no longer draws from images ({had})." if old else ""
    return dropped + (f" It learns to draw from images ({config.condition})." if channels else "")


def _list_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
