"""
A page to try a saved pipeline: generate, complete an image, scrub through the denoising chain, swap codes.

Needs the extra `demo`. examples/space/README.md says how it becomes a Space.
"""

import argparse
import copy
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
try:
    import gradio as gr
except ImportError:
    raise SystemExit('The page needs gradio, the extra `demo`: pip install -e ".[demo]" in the repository') from None
import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

from diffusion_bridge_vq import (
    DenoisingChain,
    DiffusionBridgeVQInpaintPipeline,
    DiffusionBridgeVQPipeline,
    OUBridgeScheduler,
)
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.decoding import decode_image, reason
from diffusion_bridge_vq.evaluation.paper_masks import MASKS, paper_mask
from diffusion_bridge_vq.grids import image_grid

DEMO = "checkpoints/digits"
SAMPLERS = {"DPM-Solver++": "dpmsolver++", "DDIM": "ddim", "ancestral": "ancestral"}
EXAMPLES, CHAIN_IMAGES, CHAIN_FRAMES = 4, 4, 50
CANVAS = 320  # pixels a side, about, that small images are enlarged to
CELL, TILE = 40, 32  # pixels a side, at least: a position of the map of codes; a code of the palette
ORANGE = "#ff7a1a"
CSS = """
img {image-rendering: pixelated}
label[data-testid=block-label] {position: static; width: max-content}
.grid-wrap {min-height: 0 !important; max-height: none !important}
.grid-container {grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important; padding-top: 0 !important}
.thumbnail-item {aspect-ratio: 1; height: auto !important}
@media (max-width: 480px) {.tab-container button {padding: 0 8px !important} .app {padding: 12px !important}}
"""
PROGRESS = gr.Progress()
PICTURE = functools.partial(gr.Image, format="png", buttons=[])
GALLERY = functools.partial(gr.Gallery, format="png", height="auto")


class Stopped(Exception):
    """Stop was pressed."""


def readable(handler: Callable) -> Callable:
    """`handler`, with its ValueErrors shown in the page, and the page left as it is when stopped."""

    @functools.wraps(handler)
    def handle(*args: Any) -> Any:
        try:
            return handler(*args)
        except ValueError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        except Stopped:
            return gr.skip()

    return handle


class Page:
    """The page's controls, and what they do. Handlers that draw get all values as a dict, by control."""

    def __init__(self, pipe: DiffusionBridgeVQPipeline):
        self.pipe, self.vqvae, self.side = pipe, pipe.vqvae, pipe.vqvae.config.sample_size
        self.channels, self.num_codes = self.vqvae.config.in_channels, self.vqvae.config.num_vq_embeddings
        self.map_side = self.side // self.vqvae.downsampling_factor
        self.cell, self.columns = max(CELL, CANVAS // self.map_side), math.isqrt(self.num_codes)
        self.num_classes = (pipe.unet.config.num_class_embeds or 1) - 1  # the last one stands for no class
        self.samplers = SAMPLERS if isinstance(pipe.scheduler, OUBridgeScheduler) else {"as saved": None}
        self.most_steps = min(200, pipe.scheduler.config.num_train_timesteps)
        self.stopping: set[str | None] = set()  # sessions

    def draw(
        self, kind: Any, values: dict, count: int, request: gr.Request, progress: gr.Progress, **call: Any
    ) -> Any:
        """`count` images of a pipeline `kind`, image i from seed + i: the same whatever their number."""
        seed, steps = values[self.seed], values[self.steps]
        if seed is None:
            raise ValueError("The seed is empty: give a whole number.")
        # a scheduler of its own: calls change it, and several may be under way
        pipe = kind(self.vqvae, self.pipe.unet, copy.deepcopy(self.pipe.scheduler))
        pipe.set_progress_bar_config(disable=True)
        if kind is DiffusionBridgeVQPipeline:  # completing keeps its own, see there
            call["solver"] = self.samplers[values[self.sampler]]
        if self.num_classes:
            call |= {"class_labels": int(values[self.label]), "guidance_scale": values[self.guidance]}
        done, total, chain = 0, steps * call.get("jump_n_sample", 1), call.pop("chain", None)

        def on_step(pipe: Any, step: int, timestep: torch.Tensor, kwargs: dict) -> dict:
            nonlocal done
            done += 1
            if request.session_hash in self.stopping:
                raise Stopped
            progress((done, total), desc="Drawing", unit="network calls")
            return chain(pipe, step, timestep, kwargs) if chain else {}

        self.stopping.discard(request.session_hash)
        generators = [torch.Generator(pipe.device).manual_seed(seed + i) for i in range(count)]
        return pipe(num_inference_steps=steps, generator=generators, callback_on_step_end=on_step, **call).images

    def stop(self, request: gr.Request) -> None:
        self.stopping.add(request.session_hash)
        gr.Info("Stopped.")

    @readable
    def generate(self, values: dict, request: gr.Request, progress=PROGRESS):
        count = values[self.count]
        images = self.draw(DiffusionBridgeVQPipeline, values, count, request, progress, batch_size=count)
        return with_seeds(images, values[self.seed])

    @readable
    def record_chain(self, values: dict, request: gr.Request, progress=PROGRESS):
        """-> frames, the scrubber at the last one, and that one's picture."""
        steps, n = values[self.steps], CHAIN_IMAGES
        chosen = torch.linspace(0, steps - 1, min(steps, CHAIN_FRAMES)).long().tolist()
        chain = DenoisingChain(chosen)
        self.draw(DiffusionBridgeVQPipeline, values, n, request, progress, batch_size=n, chain=chain)
        frames = [
            (f"After step {step + 1} of {steps}", image_grid(images, columns=n, tile_size=CANVAS // 2))
            for step, images in zip(chosen, chain.images, strict=True)
        ]
        scrubber = gr.Slider(value=len(frames), maximum=max(2, len(frames)), interactive=True)
        return frames, scrubber, show_frame(frames, len(frames))

    def examples(self) -> list[Image.Image]:
        """Test digits for a model of such images; for any other, what it draws itself."""
        if (self.channels, self.side) != (1, 16):
            generator = torch.Generator(self.pipe.device).manual_seed(0)
            return self.pipe(EXAMPLES, num_inference_steps=min(20, self.most_steps), generator=generator).images
        digits = load_images("digits", resolution=16, channels=1, split="test")
        return [Image.fromarray(digits[i]["images"][0].numpy()) for i in range(EXAMPLES)]

    def hidden_by(self, name: str) -> Image.Image:
        """One of the paper's masks, white where hidden; any other name hides nothing."""
        mask = paper_mask(name, self.map_side, self.map_side).numpy() if name in MASKS else np.zeros((1, 1), bool)
        return Image.fromarray(mask).convert("L").resize((self.side, self.side), Image.Resampling.NEAREST)

    def to_paint_on(self, image: Image.Image, mask_name: str = "") -> dict[str, Any]:
        """An image of the model's size and what one of the paper's masks hides -> editor."""
        picture = image.convert("RGB")
        picture.paste(ORANGE, mask=self.hidden_by(mask_name))
        return {"background": enlarge(picture), "layers": [], "composite": None}

    @readable
    def upload(self, path: str):
        """A file, converted as in training -> image of the model's size, editor."""
        name = Path(path).name
        try:
            with Image.open(path) as file:
                size = file.size
            pixels = decode_image({"bytes": None, "path": path}, self.side, self.channels)
        except Exception as error:  # Pillow raises many for damaged files
            raise ValueError(f"{name} can't be read: {reason(error)}.") from error
        if min(size) < self.side:
            raise ValueError(
                f"{name} has {size[0]} x {size[1]} pixels. The model's images have {self.side} x {self.side}: choose "
                "one that isn't smaller."
            )
        image = Image.fromarray(pixels[0] if self.channels == 1 else pixels.transpose(1, 2, 0))
        if size != image.size:
            gr.Info(f"Scaled and cropped from {size[0]} x {size[1]} to {self.side} x {self.side}, as in training.")
        return image, self.to_paint_on(image)

    @readable
    def inpaint(self, values: dict, request: gr.Request, progress=PROGRESS):
        """-> what is given, and completions."""
        image, count = values[self.image], values[self.completions]
        mask = self.hidden_by(values[self.mask])
        for layer in (values[self.editor] or {"layers": []})["layers"]:
            mask = ImageChops.lighter(mask, layer.getchannel("A").resize(mask.size, Image.Resampling.BOX))
        mask = mask.point(lambda share: 255 * (share > 127))  # hidden if mostly painted over
        if mask.getbbox() is None:
            raise ValueError("Nothing is hidden: paint over what shall be drawn anew, or choose a mask.")
        call = {"num_completions": count, "jump_n_sample": values[self.walks]}
        call |= {"image": image, "mask_image": mask, "composite_strength": float(values[self.keep])}
        images = self.draw(DiffusionBridgeVQInpaintPipeline, values, count, request, progress, **call)
        given = image.convert("RGB")
        given.paste(ORANGE, mask=mask)
        return [(enlarge(given), "given"), *with_seeds(images, values[self.seed])]

    @readable
    def draw_codes(self, values: dict, request: gr.Request, progress=PROGRESS):
        """-> codes of a drawn image, and it twice."""
        call = {"batch_size": 1, "output_type": "latent"}
        latents = self.draw(DiffusionBridgeVQPipeline, values, 1, request, progress, **call)
        return self.show_latents(latents)

    @torch.no_grad()
    def encode(self, image: Image.Image):
        """-> codes of an image of the model's size, and what is decoded from them, twice."""
        pixels = self.pipe.image_processor.preprocess(image).to(self.pipe.device)
        return self.show_latents(self.vqvae.encode(pixels).latents)

    def show_latents(self, latents: torch.Tensor):
        """-> their codes, and what is decoded from these, twice."""
        codes = self.vqvae.encode_codes(latents)[0].tolist()
        image = self.decode(codes)
        return codes, image, image

    def decode(self, codes: list[list[int]]) -> Image.Image:
        z_q = self.vqvae.decode_codes(torch.tensor([codes], device=self.pipe.device))
        return enlarge(self.pipe.decode_latents(z_q)[0])

    def palette(self) -> Image.Image:
        """The patch that each code paints among eight of its own, row by row."""
        codes = torch.arange(self.num_codes, device=self.pipe.device)[:, None, None].expand(-1, 3, 3)
        images, patch = self.pipe.decode_latents(self.vqvae.decode_codes(codes)), self.side // self.map_side
        tiles = [image.crop((patch, patch, 2 * patch, 2 * patch)) for image in images]
        return image_grid(tiles, columns=self.columns, tile_size=TILE)

    def show_codes(self, codes: list[list[int]], row: int, column: int):
        """-> the image with its codes written over it and one position marked, the code there."""
        cell, side = self.cell, self.cell * self.map_side
        picture = self.decode(codes).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        pen, font = ImageDraw.Draw(picture), ImageFont.load_default(cell / 3)
        for y, line in enumerate(codes):
            for x, code in enumerate(line):
                pen.rectangle((x * cell, y * cell, (x + 1) * cell, (y + 1) * cell), outline="gray")
                place = ((x + 0.5) * cell, (y + 0.5) * cell)
                pen.text(place, str(code), "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
        x, y = (column - 1) * cell, (row - 1) * cell
        pen.rectangle((x, y, x + cell - 1, y + cell - 1), outline=ORANGE, width=4)
        return picture, codes[row - 1][column - 1]

    @readable
    def swap(self, codes: list[list[int]], row: int, column: int, code: int | None):
        """-> codes with another one at a position, the image decoded from them, and it with its codes."""
        if code is None or not 0 <= code < self.num_codes:
            raise ValueError(f"The code must be a whole number from 0 to {self.num_codes - 1}, got {code}.")
        codes[row - 1][column - 1] = code
        return codes, self.decode(codes), self.show_codes(codes, row, column)[0]

    def choose_place(self, event: gr.SelectData) -> tuple[int, int]:
        """A click on the map -> row, column."""
        return event.index[1] // self.cell + 1, event.index[0] // self.cell + 1

    def choose_code(self, event: gr.SelectData) -> int:
        """A click on the palette -> code."""
        column, row = (place // (TILE + 4) for place in event.index)
        return min(row * self.columns + column, self.num_codes - 1)

    def build(self) -> gr.Blocks:
        examples = self.examples()
        with gr.Blocks(title="Diffusion bridges VQ-VAE", analytics_enabled=False) as page:
            gr.Markdown(
                "# Diffusion bridges VQ-VAE\n"
                f"`{self.pipe.name_or_path}`: images of {self.side} x {self.side} pixels from maps of "
                f"{self.map_side} x {self.map_side} codes, {self.num_codes} of them, drawn by a diffusion bridge."
            )
            with gr.Row():
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, min_width=100)
                self.sampler = gr.Dropdown(list(self.samplers), label="Sampler, but for Inpaint", min_width=160)
                default = min(20, self.most_steps)
                self.steps = gr.Slider(1, self.most_steps, default, step=1, label="Steps", min_width=240)
            with gr.Row(visible=self.num_classes > 0):
                self.label = gr.Slider(0, max(1, self.num_classes - 1), 0, step=1, label="Class")
                self.guidance = gr.Slider(1, 10, 1, step=0.5, label="Guidance scale, 1 for none")
            self.settings = {self.seed, self.sampler, self.steps, self.label, self.guidance}
            with gr.Tab("Generate"):
                self.build_generate()
            with gr.Tab("Inpaint"):
                self.build_inpaint(examples)
            with gr.Tab("Chain"):
                self.build_chain()
            with gr.Tab("Codebook"):
                self.build_codebook(examples[0])
        return page

    def button(self, text: str, handler: Callable, more: set, outputs: list) -> Any:
        """A button that draws with the settings and `more`, and one that stops it; the event when it is done."""
        with gr.Row():
            start = gr.Button(text, variant="primary", min_width=160)
            stop = gr.Button("Stop", min_width=80)
        drawing = start.click(handler, self.settings | more, outputs, concurrency_id="draw", concurrency_limit=1)
        stop.click(self.stop, cancels=[drawing])
        return drawing

    def build_generate(self) -> None:
        self.count = gr.Slider(1, 64, 16, step=1, label="Number of images")
        images = GALLERY(label="Images", columns=8, render=False)
        self.button("Generate", self.generate, {self.count}, [images])
        images.render()

    def build_inpaint(self, examples: list[Image.Image]) -> None:
        self.image = gr.State(examples[0])
        with gr.Row():
            with gr.Column():
                shown = [enlarge(image) for image in examples]
                choice = GALLERY(shown, label="Image", columns=EXAMPLES, allow_preview=False)
                file = gr.UploadButton("Upload an image", file_types=["image"], size="sm")
                self.mask = gr.Dropdown(["nothing", *MASKS], label="Hide, or paint over the image below")
                self.editor = gr.ImageEditor(
                    self.to_paint_on(examples[0]),
                    type="pil",
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    buttons=[],
                    show_label=False,
                    brush=gr.Brush(32, [ORANGE], color_mode="fixed"),
                )
            with gr.Column():
                self.completions = gr.Slider(1, 16, 7, step=1, label="Completions")
                self.walks = gr.Slider(1, 10, 3, step=1, label="Walks of each stretch of steps (resampling)")
                self.keep = gr.Checkbox(True, label="Keep known pixels as they were given")
                results = GALLERY(label="Completions", columns=4, render=False)
                inputs = {self.image, self.editor, self.mask, self.completions, self.walks, self.keep}
                self.button("Inpaint", self.inpaint, inputs, [results])
                results.render()

        def choose(event: gr.SelectData) -> tuple[Image.Image, dict, str]:
            return examples[event.index], self.to_paint_on(examples[event.index]), "nothing"

        choice.select(choose, None, [self.image, self.editor, self.mask])
        file.upload(self.upload, file, [self.image, self.editor]).success(lambda: "nothing", None, self.mask)
        self.mask.input(lambda name, image: self.to_paint_on(image, name), [self.mask, self.image], self.editor)

    def build_chain(self) -> None:
        frames = gr.State([])
        scrubber = gr.Slider(1, 2, 1, step=1, label="Frame", interactive=False, render=False)
        picture = PICTURE(label="Nothing drawn yet", render=False)
        self.button("Draw a chain", self.record_chain, set(), [frames, scrubber, picture])
        scrubber.render()
        picture.render()
        scrubber.input(show_frame, [frames, scrubber], picture, show_progress="hidden", trigger_mode="always_last")

    def build_codebook(self, example: Image.Image) -> None:
        start, image, _ = self.encode(example)
        codes = gr.State(start)
        before, after = (PICTURE(image, label=label, render=False) for label in ("Before", "After"))
        drawn = self.button("Draw an image", self.draw_codes, set(), [codes, before, after])
        encode = gr.Button("Take the image of Inpaint", size="sm")
        with gr.Row():
            with gr.Column():
                picture, here = self.show_codes(start, 1, 1)
                places = PICTURE(picture, label="Which code where")
                with gr.Row():
                    row = gr.Slider(1, self.map_side, 1, step=1, label="Row", min_width=180)
                    column = gr.Slider(1, self.map_side, 1, step=1, label="Column", min_width=180)
                code = gr.Number(here, label=f"Code there, 0 to {self.num_codes - 1}", precision=0)
                swap = gr.Button("Swap and decode", variant="primary")
            with gr.Column():
                with gr.Row():
                    before.render()
                    after.render()
                palette = PICTURE(self.palette(), label="The patch of each code, among eight of its own")
        encoded = encode.click(self.encode, self.image, [codes, before, after])
        swap.click(self.swap, [codes, row, column, code], [codes, after, places])
        palette.select(self.choose_code, None, code)
        chosen = places.select(self.choose_place, None, [row, column])
        # not when anything changes: after a swap, or twice after a click, it would undo what is typed in the meantime
        for event in (drawn.success, encoded.success, chosen.success, row.input, column.input):
            event(self.show_codes, [codes, row, column], [places, code], show_progress="hidden")


def enlarge(image: Image.Image) -> Image.Image:
    """Small images by a whole factor, since browsers blur what they enlarge."""
    factor = max(1, CANVAS // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def with_seeds(images: list[Image.Image], seed: int) -> list[tuple[Image.Image, str]]:
    return [(enlarge(image), f"seed {seed + i}") for i, image in enumerate(images)]


def show_frame(frames: list[tuple[str, Image.Image]], number: int) -> gr.Image:
    label, picture = frames[number - 1]
    return gr.Image(picture, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        default=os.environ.get("MODEL_ID", DEMO),
        help=f"folder of a saved pipeline, or user/model of the Hub; else $MODEL_ID, else {DEMO}",
    )
    model = parser.parse_args().model
    if model == DEMO and not Path(DEMO).is_dir():
        parser.error(f"{DEMO} isn't here: call it from the repository, or name a folder or a model of the Hub.")
    try:
        pipe = DiffusionBridgeVQPipeline.from_pretrained(model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    page = Page(pipe).build()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"])  # of its own font, letters are missing in bold
    page.launch(theme=theme, css=CSS, footer_links=[], ssr_mode=False, max_file_size="20mb")


if __name__ == "__main__":
    main()
