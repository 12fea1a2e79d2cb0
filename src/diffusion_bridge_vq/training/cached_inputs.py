"""What a run trains on instead of images: encoded here once, or in a folder that must fit."""

from functools import partial

import torch
from accelerate import Accelerator

from ..data import ImageDataset, StreamedImages
from ..data.encoded import EncodedImages
from ..run_folder import RunFolder
from .agreement import on_main_process
from .config import RunConfig
from .encoding import check_room, describe_normalizer, encode_images, encoder_fingerprint
from .objectives import Objective


def encode_for_run(
    config: RunConfig, accelerator: Accelerator, objective: Objective, images: ImageDataset | StreamedImages
) -> EncodedImages:
    """What `objective` caches of all images, in the run's folder; each process encodes its share."""
    assert objective.cached_input is not None
    folder = RunFolder(config.output_dir).encoded
    if isinstance(images, ImageDataset):  # a stream doesn't say how many there are
        channels, side, _ = images.image_shape
        with torch.no_grad():
            values = objective.encode(torch.zeros(1, channels, side, side, device=accelerator.device))
        room = partial(check_room, folder, images, values, "float32", config.random_flip, objective.condition)
        accelerator.print(on_main_process(accelerator, room))
    with torch.random.fork_rng(devices=[]):  # the run's randomness stays as it was
        encode_images(
            objective.vqvae,
            images,
            folder,
            accelerator=accelerator,
            split=config.split,
            what=objective.cached_input,
            encode=objective.encode,
            precision="float32",
            mirrored=config.random_flip,
            batch_size=config.batch_size,
            condition=objective.condition,
        )
    return EncodedImages(folder, with_condition=True)


def check_encoding(images: EncodedImages, config: RunConfig, objective: Objective) -> None:
    """
    Raises:
        ValueError: what is encoded isn't what this run needs.
    """
    encoding, folder = images.encoding, config.encoded_data
    if encoding.what != objective.cached_input:
        raise ValueError(
            f"{folder} holds {encoding.what}, but this run is trained on {objective.cached_input}: encode the images "
            f"with `--what {objective.cached_input}`."
        )
    if encoding.data["resolution"] != config.resolution:
        raise ValueError(
            f"{folder} was encoded from images of {encoding.data['resolution']} pixels, but `resolution` is "
            f"{config.resolution}."
        )
    condition = objective.condition
    if condition is not None and encoding.condition != condition.name:
        found = "no condition" if encoding.condition is None else f"the condition {encoding.condition!r}"
        raise ValueError(
            f"{folder} holds {found} of each image, but this run draws from {condition.name!r}: encode the images "
            f"with `--condition {condition.name}`."
        )
    if config.random_flip and not encoding.mirrored:
        raise ValueError(f"`random_flip` needs mirror images in {folder}: encode them with `--mirrored`, or drop it.")
    if encoding.normalizer != describe_normalizer(objective.vqvae):
        raise ValueError(
            f"{folder} was encoded with another normalizer than that of the autoencoder in {config.autoencoder_from}: "
            "encode the images with this autoencoder."
        )
    if encoding.autoencoder != encoder_fingerprint(objective.vqvae):
        raise ValueError(
            f"{folder} was encoded by another autoencoder than the one in {config.autoencoder_from}: encode the "
            "images with this one, or give the other as `vqvae_from`."
        )
