"""Draw the trajectories of a trained bridge once, on all processes, into a folder that `distill` learns from."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor

from ..data.encoded_shards import Encoding
from ..data.images import short_hash
from ..models import GumbelVQModel, refuse_image_condition, take_several_classes, words_to_labels
from ..models.conditions import split_words
from ..models.network_sizes import latent_sides
from ..sampling import sample_latents
from ..sampling.arguments import check_number
from ..sampling.steppers import read_z_star
from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import check_teacher
from .encoding import describe_normalizer, encoder_fingerprint, to_array, write_encoding

COLUMN = "trajectories"
NO_CLASS = -1  # the label of rows without a class, as in `datasets`
NO_WORDS = ""  # the text of rows without words
# Rows of a file: what is drawn again after an interruption.
_ROWS_OF_PART = 512
# Half log-SNR above which no few-step sampler begins a step: the noise is 0.14 of the latents' standard deviation.
_HIGHEST_LOG_SNR = 2.0


def draw_trajectories(
    vqvae: GumbelVQModel,
    unet: UNet2DModel,
    scheduler: OUBridgeScheduler,
    folder: Path,
    *,
    accelerator: Accelerator,
    num_trajectories: int,
    num_inference_steps: int = 12,
    guidance_scale: float = 1.0,
    class_dropout: float = 0.1,
    seed: int = 0,
    precision: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    name: str = "a bridge",
    class_names: list[str] | None = None,
    texts: Sequence[str] | None = None,
) -> Encoding:
    """
    Draw trajectories of DPM-Solver++(2M) into shards below `folder`, each process its share. Called again after an
    interruption it goes on with the shards that aren't there yet, with any number of processes.

    A row holds z_t at the noise levels from which few-step samplers begin a step (up to half a log-SNR of 2), and
    then z_0, the end: (points + 1, d, h, w). `data["timesteps"]` of the encoding names the levels of the points.

    Args:
        vqvae ([`GumbelVQModel`]), unet (`UNet2DModel`), scheduler ([`OUBridgeScheduler`]): of the teacher.
        folder (`Path`): new, or one that holds a part of the same trajectories.
        accelerator (`Accelerator`): of all processes; each calls this function. Its precision is the network's.
        num_trajectories (`int`): how many.
        num_inference_steps (`int`, *optional*, defaults to 12): steps of each.
        guidance_scale (`float`, *optional*, defaults to 1): of networks with classes.
        class_dropout (`float`, *optional*, defaults to 0.1): fraction of the trajectories that have no class, in
            [0, 1], of networks with classes. Their label is -1, or that of the text "", and they have no guidance.
        seed (`int`, *optional*, defaults to 0): of noise and classes.
        precision (`str`, *optional*, defaults to "float16"): of what is written.
        batch_size (`int`, *optional*, defaults to 64): trajectories drawn at a time, by each process.
        name (`str`, *optional*, defaults to `"a bridge"`): of the teacher, for messages.
        class_names (`list[str]`, *optional*): of the teacher's classes.
        texts (`Sequence[str]`, *optional*): of a teacher whose classes are words, what is drawn, each as often as the
            others but for one, in a random order. A label is then the number of a text.

    Raises:
        ValueError: the folder holds something else, or is in use; guidance without classes; a teacher that is a
            student itself or predicts the noise; texts without a word, or with one that isn't among the classes;
            values that `precision` can't hold.
    """
    from .. import __version__

    classes = unet.config.num_class_embeds
    if guidance_scale != 1.0 and classes is None:
        raise ValueError(f"`guidance_scale` {guidance_scale} needs a teacher with classes; leave it at 1.")
    check_number("class_dropout", class_dropout, 0, 1)
    check_teacher(scheduler)
    refuse_image_condition(unet, "students don't take")
    vectors = None
    if texts is not None:
        names, expected = class_names or [], (classes or 1) - 1
        if not names or len(names) != expected:
            raise ValueError(
                f"`texts` need a teacher whose classes are words, and `class_names`, all of these words: got "
                f"{len(names)} names for {expected} classes."
            )
        texts = _check_texts(texts)
        vectors = words_to_labels([*texts, NO_WORDS], names)
        take_several_classes(unet)
    device = accelerator.device
    unet = unet.to(device).eval()
    scheduler.set_timesteps(num_inference_steps, timestep_spacing="logsnr")
    log_snr = 0.5 * scheduler.signal_to_noise(scheduler.timesteps).log()
    points = max(1, int((log_snr <= _HIGHEST_LOG_SNR).sum()))
    settings = {
        "teacher": teacher_fingerprint(unet, scheduler),
        "timesteps": scheduler.timesteps[:points].tolist(),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": float(guidance_scale),
        "class_dropout": class_dropout if classes else 0.0,
        "num_trajectories": num_trajectories,
        "seed": seed,
        "network_precision": accelerator.mixed_precision,
    }
    encoding = Encoding(
        what=COLUMN,
        precision=precision,
        num_codes=vqvae.config.num_vq_embeddings,
        mirrored=False,
        autoencoder=encoder_fingerprint(vqvae),
        normalizer=describe_normalizer(vqvae),
        data={
            "name": f"trajectories of {name}",
            "split": "train",
            "fingerprint": short_hash(json.dumps(settings, sort_keys=True).encode()),
            "resolution": vqvae.config.sample_size,
            "channels": vqvae.config.in_channels,
            **settings,
        },
        class_names=class_names if texts is None else [*texts, NO_WORDS],
        words=None if texts is None else class_names,
        labels=classes is not None,
        parts=-(-num_trajectories // _ROWS_OF_PART),
        version=__version__,
    )
    shape = (unet.config.in_channels, *latent_sides(unet.config.sample_size))
    order = None if texts is None else torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))

    def choose(rows: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """What is written for these rows, and what the network gets."""
        if order is None or vectors is None:
            labels = rows % (classes - 1)
            return labels.masked_fill(dropped, NO_CLASS), labels.masked_fill(dropped, classes - 1)
        numbers = order[rows % len(order)].masked_fill(dropped, len(order))
        return numbers, vectors[numbers]

    def draw_part(part: int) -> Iterator[dict[str, Any]]:
        """Its noise and classes depend on the seed and the part alone."""
        generator = torch.Generator().manual_seed(seed * 2**20 + part)
        first, last = part * _ROWS_OF_PART, min((part + 1) * _ROWS_OF_PART, num_trajectories)
        all_noise = torch.randn(last - first, *shape, generator=generator)
        all_dropped = torch.rand(last - first, generator=generator) < class_dropout
        for start in range(first, last, batch_size):
            count = min(batch_size, last - start)
            keys = [f"{number:08}" for number in range(start, start + count)]
            some = slice(start - first, start - first + count)
            noise = all_noise[some]
            labels = numbers = None
            if classes:
                numbers, labels = choose(torch.arange(start, start + count), all_dropped[some])
            with accelerator.autocast():
                rows = _draw(unet, scheduler, noise, num_inference_steps, points, labels, guidance_scale, device)
            columns: dict[str, Any] = {"key": keys, COLUMN: to_array(rows, encoding, keys)}
            if numbers is not None:
                columns["label"] = numbers.tolist()
            yield columns

    return write_encoding(encoding, folder, accelerator, draw_part, doing="drawing trajectories")


def _draw(
    unet: UNet2DModel,
    scheduler: OUBridgeScheduler,
    noise: Tensor,
    num_inference_steps: int,
    points: int,
    labels: Tensor | None,
    guidance_scale: float,
    device: torch.device,
) -> Tensor:
    """z_t of the first `points` steps, then z_0: (B, points + 1, d, h, w)."""
    noise = noise.to(device)
    visited = [noise * scheduler.init_noise_sigma + read_z_star(scheduler, noise)]

    def keep(step: int, timestep: Tensor, latents: Tensor) -> None:
        if step < points - 1:
            visited.append(latents)

    z_0 = sample_latents(
        unet,
        scheduler,
        tuple(noise.shape),
        num_inference_steps,
        device=device,
        latents=noise,
        class_labels=None if labels is None else labels.to(device),
        guidance_scale=1.0 if labels is None else guidance_scale,
        solver="dpmsolver++",
        timestep_spacing="logsnr",
        callback=keep,
    )
    return torch.stack([*visited, z_0], dim=1)


def _check_texts(texts: Sequence[str]) -> list[str]:
    """Each once, in their order."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`texts` must be a list of texts, got {texts!r}.")
    found = list(dict.fromkeys(texts))
    empty = [text for text in found if not split_words(text)]
    if empty or not found:
        got = f"{len(empty)} without one, such as {empty[0]!r}" if empty else "none"
        raise ValueError(f"`texts` must be texts of at least one word each, got {got}.")
    return found


def teacher_fingerprint(unet: UNet2DModel, scheduler: OUBridgeScheduler) -> str:
    """16 hexadecimal digits over the weights and the process on which trajectories depend."""
    process = {
        "prediction_type": scheduler.config.prediction_type,
        "z_star": scheduler.config.z_star,
        "stationary_std": scheduler.stationary_std,
        "signal_to_noise": scheduler.signal_to_noise(torch.arange(len(scheduler))).tolist(),
    }
    state = unet.state_dict()
    weights = [part for key in sorted(state) for part in (key.encode(), state[key].float().cpu().numpy().tobytes())]
    return short_hash(json.dumps(process, sort_keys=True).encode(), *weights)
