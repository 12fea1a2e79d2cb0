"""What the page computes, without the page: draw, complete, show the chain, encode and decode."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..data.condition_files import read_condition
from ..pipelines import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline
from ..pipelines.denoising_chain import DenoisingChain
from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import is_student
from .jobs import Report
from .limits import Limits
from .masks import check_map, preset_masks, read_mask
from .pictures import file_of_data_url, from_data_url, naming_unreadable_files, to_data_url

ANY, NONE = "any", "none"
SOLVERS = {
    "dpmsolver++": "DPM-Solver++: few steps, no noise on the way",
    "ddim": "DDIM: no noise on the way",
    "ancestral": "Ancestral: the paper's, wants many steps",
}
MOST_STEPS, MOST_FRAMES = 200, 50
FAST_STEPS = 8
COMPLETION_STEPS, RESAMPLING, NUM_COMPLETIONS = 20, 3, 5
PAPER = "https://arxiv.org/abs/2202.04895"

Result = dict[str, Any]


class Demo:
    """
    One model's page. Methods that take `report` draw for a while and call it after each step.

    Pictures in results are data URLs of PNG files at the model's size, with their settings as a text in the file.
    Arguments that are None have the model's defaults, which its files name.

    Args:
        pipe ([`DiffusionBridgeVQPipeline`]): the model.
        name (`str`, *optional*): what the page and its downloads call it; by default taken from where it was loaded.
    """

    def __init__(self, pipe: DiffusionBridgeVQPipeline, name: str | None = None):
        self.pipe, self.vqvae = pipe, pipe.vqvae
        self.draws_from = pipe.image_condition
        self.source = str(pipe.name_or_path or "model")
        self.name = name or model_name(self.source)
        self.side, self.channels = self.vqvae.config.sample_size, self.vqvae.config.in_channels
        self.map_side = self.side // self.vqvae.downsampling_factor
        self.num_codes = self.vqvae.config.num_vq_embeddings
        num_classes = (pipe.unet.config.num_class_embeds or 1) - 1  # the last one means no class
        names = pipe.id2label or {}
        self.classes = [names.get(label, f"class {label}") for label in range(num_classes)]
        self.words = bool(pipe.config.get("label_words"))
        self.examples = pipe.label_examples
        config, student = pipe.scheduler.config, is_student(pipe.scheduler)
        self.completes = not student
        # a student has learned its guidance
        self.guided = bool(num_classes or self.draws_from) and not student
        self.solvers = SOLVERS if isinstance(pipe.scheduler, OUBridgeScheduler) and not student else {}
        most_steps = (
            max(map(int, config.few_step_timesteps)) if student else min(MOST_STEPS, config.num_train_timesteps)
        )
        self.limits = Limits(most_steps)
        steps = min(pipe.config.get("default_num_inference_steps") or 20, most_steps)
        self.defaults = {
            "num_images": shown if 4 <= (shown := len(self.examples) or num_classes) <= 12 else 8,
            "seed": 0,
            "num_inference_steps": steps,
            "guidance_scale": float(pipe.config.get("default_guidance_scale") or 1.0) if self.guided else None,
            "solver": next(iter(self.solvers), None),
            "num_completions": NUM_COMPLETIONS,
            "completion_steps": min(COMPLETION_STEPS, most_steps),
            "jump_n_sample": RESAMPLING,
            "fast_steps": min(FAST_STEPS, steps),
        }

    def describe(self) -> Result:
        """All that the page must know of the model, with pictures drawn by its defaults, if they need no picture."""
        nothing = {"images": [], "settings": self._settings("num_images", 1, None, None, None, None)[2]}
        return {
            "name": self.name,
            "image_size": self.side,
            "map_size": self.map_side,
            "num_codes": self.num_codes,
            "classes": self.classes,
            "words": self.words,
            "examples": self.examples,
            "completes": self.completes,
            "draws_from": None if self.draws_from is None else self.draws_from.name,
            "solvers": self.solvers,
            "defaults": self.defaults,
            "limits": {name: vars(limit) for name, limit in self.limits.by_name.items()},
            "masks": preset_masks(self.map_side),
            "palette": self.palette(),
            "paper": PAPER,
            "drawn": nothing if self.draws_from else self.generate(lambda step, of: None),
        }

    def generate(
        self,
        report: Report,
        class_name: str = ANY,
        num_images: float | None = None,
        seed: float | None = None,
        num_inference_steps: float | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        condition: str | None = None,
    ) -> Result:
        """
        Pictures; picture i comes from seed + i, whatever their number. "any" takes the classes in turn, or the
        examples of a model of words.
        """
        given = self._condition(condition)
        count, seed, settings = self._settings(
            "num_images", num_images, seed, num_inference_steps, guidance_scale, solver
        )
        labels = self._labels(class_name, seed, count)
        pipe = self._pipeline(DiffusionBridgeVQPipeline)
        latents = pipe(
            count,
            settings["num_inference_steps"],
            self._generators(seed, count),
            output_type="latent",
            callback_on_step_end=counting(report),
            solver=settings.get("solver"),
            condition=given,
            **self._guided(labels, settings),
        ).images
        codes = self.vqvae.encode_codes(latents)
        images = pipe.decode_latents(latents, codes=codes)
        return self._result(images, codes, labels, seed, settings)

    def chain(
        self,
        report: Report,
        class_name: str = ANY,
        seed: float | None = None,
        num_inference_steps: float | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        condition: str | None = None,
    ) -> Result:
        """One picture on its way from noise: the nearest codes of the latents before the first step and after each."""
        given = self._condition(condition)
        _, seed, settings = self._settings("num_images", 1, seed, num_inference_steps, guidance_scale, solver)
        labels = self._labels(class_name, seed, 1)
        pipe, (generator,) = self._pipeline(DiffusionBridgeVQPipeline), self._generators(seed, 1)
        shape = (1, pipe.unet.config.out_channels, self.map_side, self.map_side)
        noise = randn_tensor(shape, generator=generator, device=pipe.device, dtype=pipe.unet.dtype)
        look, count = DenoisingChain(MOST_FRAMES), counting(report)

        def on_step(pipe: Any, step: int, timestep: torch.Tensor, kwargs: dict) -> dict:
            count(pipe, step, timestep, kwargs)
            return look(pipe, step, timestep, kwargs)

        pipe(
            1,
            settings["num_inference_steps"],
            [generator],
            latents=noise,
            callback_on_step_end=on_step,
            solver=settings.get("solver"),
            condition=given,
            **self._guided(labels, settings),
        )
        z_star = torch.as_tensor(pipe.scheduler.config.get("z_star", 0.0), device=noise.device).reshape(1, -1, 1, 1)
        std = getattr(pipe.scheduler, "stationary_std", 1.0)  # 1 of stock schedulers
        start = pipe.decode_latents(noise * std + z_star.to(noise))
        images = [(step + 1, image) for step, (image,) in zip(look.image_steps, look.images, strict=True)]
        of = pipe.num_timesteps
        return {
            "frames": [{"step": step, "of": of, "png": to_data_url(image)} for step, image in [(0, *start), *images]],
            "seed": seed,
            "settings": settings,
        }

    def complete(
        self,
        report: Report,
        image: str,
        hidden: str | list[list[int]],
        class_name: str = NONE,
        num_completions: float | None = None,
        seed: float | None = None,
        num_inference_steps: float | None = None,
        guidance_scale: float | None = None,
        jump_n_sample: float | None = None,
        keep_given: bool = True,
        condition: str | None = None,
    ) -> Result:
        """Complete a picture, always by the ancestral sampler: its noise lets both parts agree."""
        given = self._condition(condition)
        steps = self.defaults["completion_steps"] if num_inference_steps is None else num_inference_steps
        count, seed, settings = self._settings("num_completions", num_completions, seed, steps, guidance_scale, None)
        resampling = self.defaults["jump_n_sample"] if jump_n_sample is None else jump_n_sample
        (resampling,) = self.limits.check(jump_n_sample=resampling)
        settings = {**settings, "jump_n_sample": resampling, "keep_given": bool(keep_given)}
        settings.pop("solver", None)
        if class_name == ANY:
            raise ValueError(f"`class_name` must be a class or {NONE!r} to complete a picture, got {ANY!r}.")
        labels = self._labels(class_name, seed, 1)
        mask = read_mask(hidden, self.map_side)
        picture, _ = from_data_url(image, self.side, self.channels)
        factor = self.side // self.map_side
        mask_image = Image.fromarray(np.kron(mask, np.ones((factor, factor), bool)).astype(np.uint8) * 255)
        images = self._pipeline(DiffusionBridgeVQInpaintPipeline)(
            picture,
            mask_image,
            settings["num_inference_steps"],
            count,
            self._generators(seed, count),
            composite_strength=float(settings["keep_given"]),
            jump_n_sample=resampling,
            callback_on_step_end=counting(report, resampling),
            condition=given,
            **self._guided(labels, settings),
        ).images
        return self._result(images, None, labels and labels * count, seed, settings)

    @torch.no_grad()
    def encode(self, image: str) -> Result:
        """A picture's file -> the picture at the model's size, its codes, and what is decoded from them."""
        picture, size = from_data_url(image, self.side, self.channels)
        pixels = self.pipe.image_processor.preprocess(picture).to(self.pipe.device, self.vqvae.dtype)
        codes = self.vqvae.encode_codes(self.vqvae.encode(pixels).latents)
        return {
            "png": to_data_url(picture),
            "size": list(size),
            "codes": codes[0].tolist(),
            "decoded": to_data_url(self._decode(codes)[0]),
        }

    @torch.no_grad()
    def decode(self, codes: list[list[int]]) -> Result:
        """A map of codes -> the picture that is decoded from them."""
        check_map("codes", codes, self.map_side, self.num_codes - 1)
        return {"png": to_data_url(self._decode(torch.tensor([codes], device=self.pipe.device))[0])}

    @torch.no_grad()
    def palette(self) -> Result:
        """The patch that each code paints where all codes around it are the same, in one picture, row by row."""
        columns, patch = math.isqrt(self.num_codes - 1) + 1, self.side // self.map_side
        codes = torch.arange(self.num_codes, device=self.pipe.device)[:, None, None].expand(-1, 3, 3)
        tiles = [image.crop((patch, patch, 2 * patch, 2 * patch)) for image in self._decode(codes)]
        rows = math.ceil(self.num_codes / columns)
        sheet = Image.new(tiles[0].mode, (columns * patch, rows * patch))
        for i, tile in enumerate(tiles):
            sheet.paste(tile, (i % columns * patch, i // columns * patch))
        return {"png": to_data_url(sheet), "columns": columns, "rows": rows}

    def _decode(self, codes: torch.Tensor) -> list[Image.Image]:
        return self.pipe.decode_latents(self.vqvae.decode_codes(codes).to(self.vqvae.dtype), codes=codes)

    def _pipeline(self, kind: Any) -> Any:
        """A pipeline with a scheduler of its own: calls change it, and several may be under way."""
        own = {name: self.pipe.config.get(name) for name in ("id2label", "label_words", "condition")}
        pipe = kind(self.vqvae, self.pipe.unet, copy.deepcopy(self.pipe.scheduler), **own)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _generators(self, seed: int, count: int) -> list[torch.Generator]:
        return [torch.Generator(self.pipe.device).manual_seed(seed + i) for i in range(count)]

    def _settings(
        self, count_name: str, count: Any, seed: Any, steps: Any, guidance_scale: Any, solver: Any
    ) -> tuple[int, int, Result]:
        """Number, seed and settings, checked, with the defaults where they are None."""
        given = {count_name: count, "seed": seed, "num_inference_steps": steps}
        values = {name: self.defaults[name] if value is None else value for name, value in given.items()}
        count, seed, steps = self.limits.check(**values)
        settings: Result = {"num_inference_steps": steps}
        if self.guided:
            default = self.defaults["guidance_scale"]
            (settings["guidance_scale"],) = self.limits.check(
                guidance_scale=default if guidance_scale is None else guidance_scale
            )
        elif guidance_scale not in (None, 1):
            reason = "has learned its guidance" if self.classes else "has no classes"
            raise ValueError(f"This model {reason}: leave out `guidance_scale`.")
        if self.solvers:
            settings["solver"] = self.defaults["solver"] if solver is None else solver
            if settings["solver"] not in self.solvers:
                raise ValueError(f"Sampler (`solver`) must be one of {', '.join(self.solvers)}, got {solver!r}.")
        elif solver is not None:
            raise ValueError("This model's scheduler is a solver itself: leave out `solver`.")
        return count, seed, settings

    def _condition(self, picture: str | None) -> torch.Tensor | None:
        """What pictures are drawn from, (1, C, s, s) in [0, 1], of a data URL; None for a model without."""
        if self.draws_from is None:
            if picture is not None:
                raise ValueError("This model doesn't draw from pictures: leave out `condition`.")
            return None
        if picture is None:
            raise ValueError("This model draws from a picture: choose one (`condition`).")
        record = {"bytes": file_of_data_url(picture), "path": None}
        with naming_unreadable_files():
            return read_condition(self.draws_from, record, self.channels, self.side)[None]

    def _labels(self, class_name: Any, seed: int, count: int) -> list[int | str] | None:
        """One label per picture, or None for no class; a text where classes are words."""
        if class_name == NONE or (class_name == ANY and not self.classes):
            return None
        if class_name == ANY:
            turns = self.examples or range(len(self.classes))
            return [turns[(seed + i) % len(turns)] for i in range(count)]
        if self.words and isinstance(class_name, str):
            return [class_name] * count
        if class_name not in self.classes:
            known = ", ".join([ANY, NONE, *self.classes])
            raise ValueError(f"Class (`class_name`) must be one of {known}, got {class_name!r}.")
        return [self.classes.index(class_name)] * count

    def _guided(self, labels: list[int | str] | None, settings: Result) -> Result:
        """Arguments of a pipeline's call; without a class and a picture to draw from there is no guidance."""
        if labels is None and self.draws_from is None:
            return {}
        return {"class_labels": labels, "guidance_scale": settings.get("guidance_scale", 1.0)}

    def _result(
        self,
        images: list[Image.Image],
        codes: torch.Tensor | None,
        labels: list[int | str] | None,
        seed: int,
        settings: Result,
    ) -> Result:
        pictures = []
        for i, image in enumerate(images):
            label = NONE if labels is None else labels[i]
            own: Result = {"seed": seed + i, "class_name": label if isinstance(label, str) else self.classes[label]}
            text = {"model": self.name, **own, **settings}
            parts = [self.name, *([] if labels is None else [own["class_name"]]), f"seed{seed + i}"]
            own |= {"png": to_data_url(image, text), "file_name": file_name(parts)}
            pictures.append(own if codes is None else own | {"codes": codes[i].tolist()})
        return {"images": pictures, "settings": settings}


def counting(report: Report, times: int = 1) -> Any:
    """A `callback_on_step_end` that counts the calls of the network, each step of which is taken `times` times."""
    done = 0

    def on_step(pipe: Any, step: int, timestep: torch.Tensor, kwargs: dict) -> dict:
        nonlocal done
        done += 1
        report(done, times * pipe.num_timesteps)  # some schedulers take more steps than they were asked for
        return {}

    return on_step


def file_name(parts: list[str]) -> str:
    clean = ["".join(c if c.isalnum() or c in "-." else "-" for c in part) for part in parts]
    return "_".join(clean) + ".png"


def model_name(source: str) -> str:
    """The last telling part of a path or of the Hub's user/model."""
    parts = [part for part in Path(source).parts if part not in ("/", "pipeline")]
    return parts[-1] if parts else "model"
