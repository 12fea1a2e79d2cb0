"""The page's endpoints for programs, and the example of docs/how-to/page.md."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from on_the_page import opened, same
from tiny_models import make_gray_pipeline, rng

from diffusion_bridge_vq.page import Demo

gradio_client = pytest.importorskip("gradio_client", reason="the page needs gradio: the extra `demo`")
pytestmark = pytest.mark.slow  # importing gradio
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "page.md"


@pytest.fixture(scope="module")
def gray() -> Demo:
    return Demo(make_gray_pipeline(), "tiny")


@pytest.fixture(scope="module")
def gray_address(serve, gray):
    yield from serve(gray)


@pytest.fixture(scope="module")
def client(gray_address):
    return gradio_client.Client(gray_address, verbose=False)


def test_endpoints_and_arguments_have_names(client):
    endpoints = client.view_api(return_format="dict", print_info=False)
    assert endpoints["unnamed_endpoints"] == {}
    names = {
        name: [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        for name, endpoint in endpoints["named_endpoints"].items()
    }
    drawing = ["seed", "num_inference_steps", "guidance_scale"]
    assert names == {
        "/generate": ["class_name", "num_images", *drawing, "solver", "condition"],
        "/chain": ["class_name", *drawing, "solver", "condition"],
        "/complete": [
            "image",
            "hidden",
            "class_name",
            "num_completions",
            *drawing,
            "jump_n_sample",
            "keep_given",
            "condition",
        ],
        "/encode": ["image"],
        "/decode": ["codes"],
    }
    assert all(endpoint["description"] for endpoint in endpoints["named_endpoints"].values())


def test_images_have_the_models_size(client, gray):
    result = client.predict(num_images=2, seed=3, num_inference_steps=4, api_name="/generate")
    shown = [np.asarray(opened(image["png"])) for image in result["images"]]
    assert same(shown, [np.asarray(image) for image in gray.pipe(2, 4, [rng(3), rng(4)]).images])
    assert shown[0].shape == (16, 16)


@pytest.mark.parametrize(
    ("endpoint", "arguments", "message"),
    [
        ("/generate", {"num_images": 2.5}, "Number of pictures (`num_images`) must be a whole number from 1 to 64"),
        ("/generate", {"num_inference_steps": "many"}, "Steps (`num_inference_steps`) must be a whole number"),
        ("/complete", {"image": "photo.png"}, "The picture must be a data URL"),
        ("/decode", {"codes": [[1]]}, "`codes` must be 4 lists of 4"),
    ],
)
def test_errors_arrive_as_messages(client, endpoint, arguments, message):
    with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
        client.predict(**arguments, api_name=endpoint)


def test_a_canceled_job_stops(client, gray, monkeypatch):
    steps, draw = [], gray.generate
    begun, answered, ended = (threading.Event() for _ in range(3))

    def generate(report, *args):
        def slowly(step: int, of: int) -> None:
            report(step, of)
            steps.append(step)
            begun.set()
            answered.wait(1)  # not for longer: the server closes a job when it has reported a step

        try:
            return draw(slowly, *args)
        finally:
            ended.set()

    monkeypatch.setattr(gray, "generate", generate)
    job = client.submit(num_images=1, num_inference_steps=20, api_name="/generate")
    assert begun.wait(60)
    job.cancel()
    answered.set()
    monkeypatch.undo()
    client.predict(num_images=1, num_inference_steps=1, api_name="/generate")
    assert ended.wait(60) and len(steps) < 20


def test_the_documented_example_runs(gray_address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code.count("http://127.0.0.1:7860") == 1
    names: dict = {}
    exec(compile(code.replace("http://127.0.0.1:7860", gray_address), "page.md", "exec"), names)
    assert [image.size for image in names["images"]] == [(16, 16)] * 4
    assert len(names["completions"]) == 3 and (tmp_path / "tiny_seed0.png").is_file()
    left = [np.asarray(image)[:, :8] for image in (names["images"][0], *names["completions"])]
    assert all((part == left[0]).all() for part in left)
    assert names["steps"] == [f"step {i} of 20" for i in range(21)]
