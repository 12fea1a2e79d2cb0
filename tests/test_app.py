"""examples/app.py as a reader meets it: served by a process of its own, opened in headless Chromium."""

import importlib.util
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from tiny_pipeline import make_gray_pipeline, make_pipeline, rng

from diffusion_bridge_vq import (
    DenoisingChain,
    DiffusionBridgeVQInpaintPipeline,
    DiffusionBridgeVQPipeline,
    OUBridgeScheduler,
)
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.grids import image_grid
from diffusion_bridge_vq.sampling import sample_latents

pytest.importorskip("gradio", reason="the page needs gradio: the extra `demo`")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: the extra `test`")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium`"),
]

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PATIENCE = 30  # seconds, for a busy machine
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1100, "height": 800}


@pytest.fixture(scope="module")
def pipe() -> DiffusionBridgeVQPipeline:
    pipe = make_gray_pipeline()
    pipe.scheduler = OUBridgeScheduler(prediction_type="sample", timestep_spacing="trailing")
    return pipe


@pytest.fixture(scope="module")
def address(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    pipe.save_pretrained(folder / "pipeline")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = ENVIRONMENT | {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "files")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, ROOT / "examples" / "app.py", folder / "pipeline"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(6 * PATIENCE):  # torch and gradio, on a busy machine
            assert server.poll() is None, (folder / "log").read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        else:
            pytest.fail("the server doesn't come up: " + (folder / "log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    page = browser.new_page(viewport=getattr(request, "param", DESK))
    page.set_default_timeout(PATIENCE * 1000)
    hosts, errors = set(), []
    page.on("request", lambda r: hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Generate").wait_for()
    yield page
    assert hosts == {address.removeprefix("http://")}, "the page fetches from the net"
    assert not errors
    page.close()


def fetch(source: str) -> Image.Image:
    return Image.open(io.BytesIO(urllib.request.urlopen(source).read()))


def block(page, label: str):
    return page.locator(".block").filter(has=page.locator("label[data-testid=block-label]", has_text=label))


def pictures(page, label: str) -> list[np.ndarray]:
    """What a gallery or an image of the open tab shows, at the model's 16 x 16 where it is a single image."""
    sources = block(page, label).locator("img").evaluate_all("images => images.map(image => image.src)")
    return [np.asarray(fetch(source)) for source in sources]


def small(picture: np.ndarray) -> np.ndarray:
    """Undo the page's enlarging."""
    factor = picture.shape[0] // 16
    assert (
        picture == np.kron(picture[::factor, ::factor], np.ones((factor, factor) + (1,) * (picture.ndim - 2)))
    ).all()
    return picture[::factor, ::factor]


def fill(page, **values) -> None:
    for label, value in values.items():
        field = page.get_by_label(label.replace("_", " "), exact=False).and_(page.locator("input[type=number]")).first
        field.fill(str(value))
        field.press("Tab")


def wait_until(condition) -> None:
    for _ in range(2 * PATIENCE):
        if condition():
            return
        time.sleep(0.5)
    raise AssertionError("it never happened")


def choose_mask(page, start: str) -> None:
    page.get_by_label("Hide, or paint").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type(start)
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)  # the server draws the editor's picture


def expect_message(page, text: str) -> None:
    """Wait for a message in the page, and close it."""
    toast = page.get_by_test_id("toast-body").filter(has_text=text)
    toast.wait_for()
    toast.get_by_test_id("toast-close").click()


def direct(pipe, count: int, steps: int, seed: int) -> torch.Tensor:
    """z_0 by the scheduler's own steps, whatever a pipeline's default is; image i from seed + i."""
    generators = [rng(seed + i) for i in range(count)]
    return sample_latents(pipe.unet, pipe.scheduler, (count, 2, 4, 4), steps, generator=generators)


def test_generate(page, pipe):
    fill(page, Seed=3, Steps=7, Number_of_images=5)
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("seed 7").wait_for()
    shown = [small(picture) for picture in pictures(page, "Images")]
    np.testing.assert_array_equal(shown, [np.asarray(image) for image in pipe.decode_latents(direct(pipe, 5, 7, 3))])


def test_generate_by_keyboard_with_another_sampler(page, pipe):
    def tab_to(locator) -> None:
        for _ in range(60):
            if locator.evaluate("element => element === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab never reaches {locator}")

    tab_to(page.get_by_label("Sampler"))
    page.keyboard.type("DPM")
    page.keyboard.press("Enter")
    tab_to(page.get_by_role("spinbutton", name="number input for Steps"))
    page.keyboard.press("Control+a")
    page.keyboard.type("6")
    tab_to(page.get_by_role("spinbutton", name="number input for Number of images"))
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    tab_to(page.get_by_role("button", name="Generate"))
    page.keyboard.press("Enter")
    page.get_by_text("seed 1", exact=True).wait_for()
    other = DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, pipe.scheduler.to_diffusers(DPMSolverMultistepScheduler))
    shown = [small(picture) for picture in pictures(page, "Images")]
    np.testing.assert_array_equal(shown, [np.asarray(image) for image in other.decode_latents(direct(other, 2, 6, 0))])


def test_inpaint_what_is_painted(page):
    page.get_by_role("tab", name="Inpaint").click()
    fill(page, Steps=5, Completions=3)
    canvas = page.locator("canvas:visible").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(2000)  # the editor reports nothing when it is ready
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    for offset in range(-60, 61, 5):
        page.mouse.move(x + offset, y)
        page.wait_for_timeout(20)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Inpaint").click()
    page.get_by_text("seed 2", exact=True).wait_for()

    given, *completions = [small(picture) for picture in pictures(page, "Completions")]
    image = load_images("digits", resolution=16, channels=1, split="test")[0]["images"][0].numpy()
    hidden = (given != image[..., None]).any(-1)
    assert hidden[7:9, 5:11].all()  # a bar in the middle
    assert not hidden[:5].any() and not hidden[11:].any() and not hidden[:, :2].any() and not hidden[:, 14:].any()
    for completion in completions:
        np.testing.assert_array_equal(completion[~hidden], image[~hidden])
        assert (completion[hidden] != image[hidden]).mean() > 0.5
    assert len({completion.tobytes() for completion in completions}) == 3


def test_inpaint_a_mask_by_keyboard(page, pipe):
    page.get_by_role("tab", name="Inpaint").click()
    fill(page, Steps=5, Completions=1)
    choose_mask(page, "left-half")
    page.get_by_label("Keep known pixels").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Inpaint").focus()
    page.keyboard.press("Enter")
    page.get_by_text("seed 0", exact=True).wait_for()
    given, completion = [small(picture) for picture in pictures(page, "Completions")]
    image = load_images("digits", resolution=16, channels=1, split="test")[0]["images"][0].numpy()
    np.testing.assert_array_equal((given != image[..., None]).any(-1), np.arange(16) >= np.full((16, 1), 8))
    mask = Image.fromarray(np.uint8(255 * (np.arange(16) >= np.full((16, 1), 8))))
    inpaint = DiffusionBridgeVQInpaintPipeline(pipe.vqvae, pipe.unet, pipe.scheduler)
    (expected,) = inpaint(Image.fromarray(image), mask, 5, generator=rng(), jump_n_sample=3).images
    np.testing.assert_array_equal(completion, np.asarray(expected))


def test_errors_are_readable(page, tmp_path):
    page.get_by_role("tab", name="Inpaint").click()
    page.get_by_role("button", name="Inpaint").click()
    expect_message(page, "Nothing is hidden: paint over")

    Image.new("RGB", (40, 9)).save(tmp_path / "flat.png")
    (tmp_path / "text.png").write_text("no image")
    upload = page.locator("input[type=file]").first
    for name, expected in (("flat.png", "has 40 x 9 pixels"), ("text.png", "not an image")):
        upload.set_input_files(tmp_path / name)
        expect_message(page, expected)

    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Seed").fill("")
    page.get_by_role("button", name="Generate").click()
    expect_message(page, "The seed is empty")


def test_upload_is_converted_as_in_training(page, tmp_path):
    Image.new("RGB", (60, 40), (200, 200, 200)).save(tmp_path / "gray.png")
    page.get_by_role("tab", name="Inpaint").click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "gray.png")
    expect_message(page, "from 60 x 40 to 16 x 16")
    fill(page, Steps=2, Completions=1)
    choose_mask(page, "center")
    page.wait_for_timeout(2000)
    page.get_by_role("button", name="Inpaint").click()
    page.get_by_text("seed 0", exact=True).wait_for()
    given, completion = [small(picture) for picture in pictures(page, "Completions")]
    outside = np.ones((16, 16), bool)
    outside[4:12, 4:12] = False
    assert (completion[outside] == 200).all() and (given[outside] == 200).all()
    assert (completion[~outside] != 200).any()


def test_chain_is_scrubbed(page, pipe):
    page.get_by_role("tab", name="Chain").click()
    fill(page, Steps=8)
    page.get_by_role("button", name="Draw a chain").click()
    page.get_by_text("After step 8 of 8").wait_for()
    chain = DenoisingChain(range(8))
    generators = [rng(seed) for seed in range(4)]
    pipe(4, 8, generators, solver="ancestral", callback_on_step_end=chain)
    expected = [np.asarray(image_grid(images, columns=4, tile_size=160)) for images in chain.images]
    np.testing.assert_array_equal(pictures(page, "After step 8 of 8"), [expected[7]])
    page.locator("input[type=range]:visible").last.focus()
    for step in (7, 6):
        page.keyboard.press("ArrowLeft")
        page.get_by_text(f"After step {step} of 8").wait_for()
        np.testing.assert_array_equal(pictures(page, f"After step {step} of 8"), [expected[step - 1]])
    assert (expected[5] != expected[7]).any()


def test_code_is_swapped(page, pipe):
    page.get_by_role("tab", name="Codebook").click()
    fill(page, Steps=4, Seed=2)
    (example,) = pictures(page, "Before")
    page.get_by_role("button", name="Draw an image").click()
    wait_until(lambda: (pictures(page, "Before")[0] != example).any())
    codes = pipe.vqvae.encode_codes(direct(pipe, 1, 4, 2))

    def decoded() -> np.ndarray:
        return np.asarray(pipe.decode_latents(pipe.vqvae.decode_codes(codes))[0])

    drawn = decoded()
    for label in ("Before", "After"):
        np.testing.assert_array_equal(small(*pictures(page, label)), drawn)
    places = block(page, "Which code where").locator("img")
    box = places.bounding_box()
    places.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.4})  # row 2, column 3
    field = page.get_by_label("Code there")
    wait_until(lambda: field.input_value() == str(codes[0, 1, 2].item()))
    assert [page.get_by_label(f"number input for {name}").input_value() for name in ("Row", "Column")] == ["2", "3"]

    other = (codes[0, 1, 2].item() + 5) % 16
    field.fill(str(other))
    page.get_by_role("button", name="Swap and decode").click()
    codes[0, 1, 2] = other
    assert (decoded() != drawn).any()
    wait_until(lambda: np.array_equal(small(*pictures(page, "After")), decoded()))
    np.testing.assert_array_equal(small(*pictures(page, "Before")), drawn)

    palette = block(page, "The patch of each code").locator("img")
    box = palette.bounding_box()
    palette.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.6})  # of 4 x 4 codes
    wait_until(lambda: field.input_value() == "11")

    field.fill("16")
    page.get_by_role("button", name="Swap and decode").click()
    expect_message(page, "from 0 to 15, got 16")


@pytest.fixture(scope="module")
def app():
    specification = importlib.util.spec_from_file_location("app", ROOT / "examples" / "app.py")
    specification.loader.exec_module(module := importlib.util.module_from_spec(specification))
    return module


def test_stop_ends_the_computing(app, pipe):
    page = app.Page(pipe)
    page.build()
    values = {control: control.value for control in page.settings}
    calls = []

    def progress(share, **kwargs) -> None:
        calls.append(share)
        if len(calls) == 3:
            page.stopping.add("a session")

    def draw() -> None:
        request = SimpleNamespace(session_hash="a session")
        page.draw(DiffusionBridgeVQPipeline, values, 1, request, progress, batch_size=1)

    with pytest.raises(app.Stopped):
        draw()
    assert calls == [(1, 50), (2, 50), (3, 50)]
    draw()  # that was for one call
    assert len(calls) == 53


@pytest.mark.parametrize("classes", [None, 4])
def test_class_and_guidance(app, classes):
    pipe = make_pipeline(classes, size=3)
    page = app.Page(pipe)
    page.build()
    assert page.label.parent.parent.visible == (classes is not None)
    values = {control: control.value for control in page.settings} | {page.label: 1, page.guidance: 3.0, page.steps: 6}
    request = SimpleNamespace(session_hash="a session")
    draw = partial(page.draw, DiffusionBridgeVQPipeline, values, 1, request, lambda *args, **kwargs: None)
    drawn = draw(batch_size=1, output_type="latent")
    labels = {} if classes is None else {"class_labels": torch.tensor([1]), "guidance_scale": 3.0}
    expected = sample_latents(pipe.unet, pipe.scheduler, (1, 3, 3, 3), 6, generator=[rng()], **labels)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


def test_stop(page):
    page.get_by_role("tab", name="Inpaint").click()
    choose_mask(page, "center")
    fill(page, Steps=200, Completions=16)
    page.get_by_label("number input for Walks").fill("10")  # 2,000 network calls
    page.get_by_role("button", name="Inpaint").click()
    page.get_by_text("/2k network calls").wait_for()
    page.get_by_role("button", name="Stop").and_(page.locator(":visible")).click()
    expect_message(page, "Stopped")
    page.get_by_text("/2k network calls").wait_for(state="hidden")
    assert pictures(page, "Completions") == []
    fill(page, Steps=2, Completions=1)  # and the next one isn't held up
    page.get_by_role("button", name="Inpaint").click()
    page.get_by_text("seed 0", exact=True).wait_for()


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_nothing_is_wider_than_a_phone(page):
    fill(page, Steps=2)
    for tab, button, done in (
        ("Generate", "Generate", "seed 15"),
        ("Inpaint", "Inpaint", "seed 6"),
        ("Chain", "Draw a chain", "After step 2 of 2"),
        ("Codebook", "Draw an image", "Before"),
    ):
        page.get_by_role("tab", name=tab).click()
        if tab == "Inpaint":
            choose_mask(page, "center")
        page.get_by_role("button", name=button).click()
        page.get_by_text(done, exact=True).and_(page.locator(":visible")).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab


def test_without_the_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "app.py"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "call it from the repository" in done.stderr
