"""From components to a pipeline, and from what a run trained to its folder."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from ..models import GumbelVQModel
from ..run_folder import RunFolder
from .pipeline_diffusion_bridge_vq import DiffusionBridgeVQPipeline
from .pipeline_pixelcnn_vq import PixelCNNVQPipeline
from .saved_folder import find_pipeline_folder

logger = logging.get_logger(__name__)

_PIPELINES: dict[frozenset[str], type[DiffusionPipeline]] = {
    frozenset({"vqvae", "unet", "scheduler"}): DiffusionBridgeVQPipeline,
    frozenset({"vqvae", "prior"}): PixelCNNVQPipeline,
}


def build_pipeline(
    components: Mapping[str, Any],
    id2label: Mapping[int, str] | None = None,
    **settings: Any,
) -> DiffusionPipeline:
    """
    The pipeline that consists of these components.

    Args:
        components (`Mapping[str, Any]`): by name: vqvae, unet and scheduler, or vqvae and prior.
        id2label (`Mapping[int, str]`, *optional*): names of the classes, of a model that has classes.
        settings: further ones of the pipeline, such as `label_words`, see [`DiffusionBridgeVQPipeline`].

    Raises:
        TypeError: `components` isn't a dict.
        ValueError: no pipeline has these components, or names that don't fit them.
    """
    if not isinstance(components, Mapping):
        raise TypeError(f"`components` must be a dict, from names to components, got {type(components).__name__}.")
    cls = _PIPELINES.get(frozenset(components))
    if cls is None:
        known = "; ".join(", ".join(sorted(names)) for names in _PIPELINES)
        raise ValueError(f"No pipeline has the components {', '.join(sorted(components))}; expected {known}.")
    return cls(**components, id2label=id2label, **settings)


def load_pipeline(folder: str | Path, **options: Any) -> DiffusionPipeline:
    """
    Load a saved pipeline of any class of this package from a folder.

    Args:
        folder (`str` or `Path`): of a pipeline, or of a run.
        options: see [`VQPipeline.from_pretrained`].

    Raises:
        ValueError: see [`VQPipeline.from_pretrained`].
    """
    found = find_pipeline_folder(folder)
    cls = PixelCNNVQPipeline if found is not None and (found / "prior").is_dir() else DiffusionBridgeVQPipeline
    return cls.from_pretrained(found or folder, **options)


def save_components(
    components: Mapping[str, Any],
    run: RunFolder,
    id2label: Mapping[int, str] | None = None,
    **settings: Any,
) -> list[Path]:
    """
    Save what a run trained: as `pipeline/` if a pipeline has these components, else each in a folder of its own name.

    Args:
        components (`Mapping[str, Any]`): by name.
        run ([`RunFolder`]): where to.
        id2label (`Mapping[int, str]`, *optional*): see [`build_pipeline`]. Left out without a pipeline, like the rest.
        settings: see [`build_pipeline`].

    Returns:
        `list[Path]`: the folders that were written.
    """
    if frozenset(components) in _PIPELINES:
        return [_save_whole(build_pipeline(components, id2label, **settings), run.pipeline)]
    return [_save_whole(component, run.path / name) for name, component in components.items()]


def save_trained(
    components: Mapping[str, Any], run: RunFolder, folder: RunFolder | None = None, start: str | Path | None = None
) -> list[Path]:
    """
    Save what a run trained, with what its `config.json` says of the model. A decoder that was trained on
    (`decoder_only`) is saved with the prior of the pipeline that the run started from, which has the same codes.

    Args:
        components (`Mapping[str, Any]`): by name.
        run ([`RunFolder`]): the run.
        folder ([`RunFolder`], *optional*): where to; defaults to `run`.
        start (`str` or `Path`, *optional*): where the run's `init_from` is now; defaults to where it was.

    Returns:
        `list[Path]`: the folders that were written.

    Raises:
        ValueError: see [`build_pipeline`].
    """
    folder = folder or run
    settings = run.read_config() if run.config.is_file() else {}
    if settings.get("decoder_only") and settings.get("init_from"):
        before = RunFolder(Path(start or settings["init_from"]))
        if any(before.find_component(name) for name in ("unet", "prior")):
            try:
                whole = _with_decoder(before.path, components["vqvae"])
            except (OSError, ValueError) as error:  # what was trained is kept
                logger.warning(f"The autoencoder is saved alone, without the model in {before.path}: {error}")
            else:
                saved = [_save_whole(whole, folder.pipeline)]
                shutil.rmtree(folder.autoencoder, ignore_errors=True)  # of an earlier end, without the prior
                return saved
    return save_components(components, folder, **run.read_pipeline_settings())


def _with_decoder(folder: Path, vqvae: GumbelVQModel) -> DiffusionPipeline:
    """
    A saved pipeline with another autoencoder that has the same codes.

    Raises:
        ValueError: it has other codes; see [`load_pipeline`].
    """
    pipe, new = load_pipeline(folder), _encoder_weights(vqvae)
    old = _encoder_weights(pipe.vqvae)
    if old.keys() != new.keys() or any(not torch.equal(old[name], new[name].to(old[name])) for name in old):
        raise ValueError("its prior is one on other codes.")
    pipe.register_modules(vqvae=vqvae)
    return pipe


def _encoder_weights(vqvae: GumbelVQModel) -> dict[str, torch.Tensor]:
    """All but those of the decoder: what codes depend on."""
    weights = vqvae.state_dict()
    return {name: weights[name] for name in weights if not name.startswith(("decoder.", "post_quant_conv."))}


def _save_whole(saved: Any, folder: Path) -> Path:
    """Save into another folder and rename it, so that a folder of this name is never half-written."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    saved.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier end of the same run
    os.replace(partial, folder)
    return folder
