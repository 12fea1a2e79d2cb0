"""The page and its API on one server: gradio's queue and client protocol, with a page of its own in `static/`."""

import functools
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
try:
    import gradio as gr
except ImportError:
    raise ImportError('The page needs gradio: install the extra, `pip install "diffusion-bridge-vq[demo]"`.') from None
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from .card import card_folder, card_html, is_on_hub
from .demo import Demo
from .jobs import Stopped, run_in_steps

STATIC = Path(__file__).parent / "static"


def build_server(demo: Demo) -> gr.Server:
    """
    The page at "/", and the endpoints "/generate", "/chain", "/complete", "/encode" and "/decode" for `gradio_client`.

    Pictures are drawn one job at a time. A job ends when it is canceled or when nobody listens any more.
    """
    server = gr.Server(title=f"Diffusion bridge VQ-VAE: {demo.name}", docs_url=None, redoc_url=None)
    add_endpoints(server, demo)
    description = demo.describe()
    description["card"] = f"https://huggingface.co/{demo.source}" if is_on_hub(demo.source) else "model-card"
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    # "<" would end the script element that holds the JSON
    index = index.replace("{{model}}", json.dumps(description).replace("<", "\\u003c"))
    folder = card_folder(demo.source)

    @server.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(index)

    @server.get("/model-card", include_in_schema=False)
    def model_card() -> Response:
        if folder is None:
            return HTMLResponse(card_html(demo.name, "This model's folder has no card (README.md)."), 404)
        return HTMLResponse(card_html(demo.name, (folder / "README.md").read_text(encoding="utf-8")))

    @server.get("/{name}.png", include_in_schema=False)
    def picture_of_the_card(name: str) -> Response:
        if folder is None or not re.fullmatch(r"[\w-]+", name) or not (folder / f"{name}.png").is_file():
            return Response(status_code=404)
        return FileResponse(folder / f"{name}.png")

    @server.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return RedirectResponse("page/icon.svg")

    server.mount("/page", StaticFiles(directory=STATIC))
    return server


def add_endpoints(server: gr.Server, demo: Demo) -> None:
    drawing: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 1}
    looking: dict[str, Any] = {"concurrency_id": "look", "concurrency_limit": 2}

    @server.api(name="generate", **drawing)
    @with_messages
    def generate(
        class_name: str = "any",
        num_images: float | None = None,
        seed: float | None = None,
        num_inference_steps: float | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        condition: str | None = None,
    ) -> Iterator[dict]:
        """Draw pictures. Yields {"step", "of"} on the way and {"images", "settings"} at the end."""
        arguments = (class_name, num_images, seed, num_inference_steps, guidance_scale, solver, condition)
        yield from run_in_steps(lambda report: demo.generate(report, *arguments))

    @server.api(name="chain", **drawing)
    @with_messages
    def chain(
        class_name: str = "any",
        seed: float | None = None,
        num_inference_steps: float | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        condition: str | None = None,
    ) -> Iterator[dict]:
        """One picture after each step, from noise on. Yields {"step", "of"} on the way and {"frames"} at the end."""
        arguments = (class_name, seed, num_inference_steps, guidance_scale, solver, condition)
        yield from run_in_steps(lambda report: demo.chain(report, *arguments))

    @server.api(name="complete", **drawing)
    @with_messages
    def complete(
        image: str,
        hidden: str | list[list[int]] = "left half given",
        class_name: str = "none",
        num_completions: float | None = None,
        seed: float | None = None,
        num_inference_steps: float | None = None,
        guidance_scale: float | None = None,
        jump_n_sample: float | None = None,
        keep_given: bool = True,
        condition: str | None = None,
    ) -> Iterator[dict]:
        """Draw what is hidden of a picture anew. `image` is a data URL; `hidden` a mask's name or a map of 0 and 1."""
        numbers = (num_completions, seed, num_inference_steps, guidance_scale, jump_n_sample)
        arguments = (image, hidden, class_name, *numbers, keep_given, condition)
        yield from run_in_steps(lambda report: demo.complete(report, *arguments))

    @server.api(name="encode", **looking)
    @with_messages
    def encode(image: str) -> Iterator[dict]:
        """A picture, as a data URL -> the picture at the model's size, its codes, and what is decoded from them."""
        yield demo.encode(image)

    @server.api(name="decode", **looking)
    @with_messages
    def decode(codes: list[list[int]]) -> Iterator[dict]:
        """A map of codes -> the picture that is decoded from them."""
        yield demo.decode(codes)


def with_messages(endpoint: Callable[..., Iterator[dict]]) -> Callable[..., Iterator[dict]]:
    """`endpoint`, whose ValueErrors reach the page and API clients as messages."""

    @functools.wraps(endpoint)
    def handle(*args: Any, **kwargs: Any) -> Iterator[dict]:
        try:
            yield from endpoint(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Stopped:
            return

    # gradio documents what one value of the generator is
    handle.__signature__ = inspect.signature(endpoint).replace(return_annotation=dict)  # type: ignore[attr-defined]
    return handle


def launch(demo: Demo, **options: Any) -> tuple[Any, str, str]:
    """Serve the page until it is interrupted; `options` are gradio's."""
    return build_server(demo).launch(**{"footer_links": [], "ssr_mode": False, **options})
