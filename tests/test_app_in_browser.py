"""examples/app.py as a reader meets it: served by a process of its own, opened in headless Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from browser_page import (
    PATIENCE,
    block,
    choose_mask,
    expect_message,
    fill,
    open_tab,
    pictures,
    press,
    same,
    small,
    wait_for_text,
    wait_until,
)
from PIL import Image
from tiny_models import make_gray_pipeline, rng

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
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1100, "height": 800}


@pytest.fixture(scope="module")
def pipe() -> DiffusionBridgeVQPipeline:
    pipe = make_gray_pipeline()
    pipe.scheduler = OUBridgeScheduler(prediction_type="sample", timestep_spacing="trailing")
    return pipe


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """The page's first example."""
    return load_images("digits", resolution=16, channels=1, split="test")[0]["images"][0].numpy()


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


def direct(pipe, count: int, steps: int, seed: int, solver: str) -> torch.Tensor:
    """z_0; image i from seed + i."""
    generators = [rng(seed + i) for i in range(count)]
    return sample_latents(pipe.unet, pipe.scheduler, (count, 2, 4, 4), steps, generator=generators, solver=solver)


def test_generate(page, pipe):
    fill(page, Seed=3, Steps=7, Number_of_images=5)
    press(page, "Generate")
    wait_for_text(page, "seed 7")
    shown = [small(picture) for picture in pictures(page, "Images")]
    assert same(shown, list(map(np.asarray, pipe.decode_latents(direct(pipe, 5, 7, 3, "dpmsolver++")))))


def test_generate_by_keyboard_with_another_sampler(page, pipe):
    def tab_to(locator) -> None:
        for _ in range(60):
            if locator.evaluate("element => element === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab never reaches {locator}")

    tab_to(page.get_by_label("Sampler"))
    page.keyboard.type("anc")
    page.keyboard.press("Enter")
    tab_to(page.get_by_role("spinbutton", name="number input for Steps"))
    page.keyboard.press("Control+a")
    page.keyboard.type("6")
    tab_to(page.get_by_role("spinbutton", name="number input for Number of images"))
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    tab_to(page.get_by_role("button", name="Generate"))
    page.keyboard.press("Enter")
    wait_for_text(page, "seed 1")
    shown = [small(picture) for picture in pictures(page, "Images")]
    assert same(shown, list(map(np.asarray, pipe.decode_latents(direct(pipe, 2, 6, 0, "ancestral")))))


def test_inpaint_what_is_painted(page, image):
    open_tab(page, "Inpaint")
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
    press(page, "Inpaint")
    wait_for_text(page, "seed 2")

    given, *completions = [small(picture) for picture in pictures(page, "Completions")]
    hidden = (given != image[..., None]).any(-1)
    assert hidden[7:9, 5:11].all()  # a bar in the middle
    assert not hidden[:5].any() and not hidden[11:].any() and not hidden[:, :2].any() and not hidden[:, 14:].any()
    for completion in completions:
        np.testing.assert_array_equal(completion[~hidden], image[~hidden])
        assert (completion[hidden] != image[hidden]).mean() > 0.5
    assert len({completion.tobytes() for completion in completions}) == 3


def test_inpaint_a_mask_by_keyboard(page, pipe, image):
    open_tab(page, "Inpaint")
    fill(page, Steps=5, Completions=1)
    choose_mask(page, "left-half")
    page.get_by_label("Keep known pixels").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Inpaint").focus()
    page.keyboard.press("Enter")
    wait_for_text(page, "seed 0")
    given, completion = [small(picture) for picture in pictures(page, "Completions")]
    hidden = np.arange(16) >= np.full((16, 1), 8)
    np.testing.assert_array_equal((given != image[..., None]).any(-1), hidden)
    mask = Image.fromarray(np.uint8(255 * hidden))
    inpaint = DiffusionBridgeVQInpaintPipeline(pipe.vqvae, pipe.unet, pipe.scheduler)
    (expected,) = inpaint(Image.fromarray(image), mask, 5, generator=rng(), jump_n_sample=3).images
    assert same(completion, np.asarray(expected))


def test_errors_are_readable(page, tmp_path):
    open_tab(page, "Inpaint")
    press(page, "Inpaint")
    expect_message(page, "Nothing is hidden: paint over")

    Image.new("RGB", (40, 9)).save(tmp_path / "flat.png")
    (tmp_path / "text.png").write_text("no image")
    upload = page.locator("input[type=file]").first
    for name, expected in (("flat.png", "has 40 x 9 pixels"), ("text.png", "not an image")):
        upload.set_input_files(tmp_path / name)
        expect_message(page, expected)

    open_tab(page, "Generate")
    page.get_by_label("Seed").fill("")
    press(page, "Generate")
    expect_message(page, "The seed is empty")


def test_upload_is_converted_as_in_training(page, tmp_path):
    Image.new("RGB", (60, 40), (200, 200, 200)).save(tmp_path / "gray.png")
    open_tab(page, "Inpaint")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "gray.png")
    expect_message(page, "from 60 x 40 to 16 x 16")
    fill(page, Steps=2, Completions=1)
    choose_mask(page, "center")
    page.wait_for_timeout(2000)
    press(page, "Inpaint")
    wait_for_text(page, "seed 0")
    given, completion = [small(picture) for picture in pictures(page, "Completions")]
    outside = np.ones((16, 16), bool)
    outside[4:12, 4:12] = False
    assert (completion[outside] == 200).all() and (given[outside] == 200).all()
    assert (completion[~outside] != 200).any()


def test_chain_is_scrubbed(page, pipe):
    open_tab(page, "Chain")
    fill(page, Steps=8)
    press(page, "Draw a chain")
    wait_for_text(page, "After step 8 of 8")
    chain = DenoisingChain(range(8))
    generators = [rng(seed) for seed in range(4)]
    pipe(4, 8, generators, callback_on_step_end=chain)
    expected = [np.asarray(image_grid(images, columns=4, tile_size=160)) for images in chain.images]
    assert same(pictures(page, "After step 8 of 8"), [expected[7]])
    page.locator("input[type=range]:visible").last.focus()
    for step in (7, 6):
        page.keyboard.press("ArrowLeft")
        wait_for_text(page, f"After step {step} of 8")
        assert same(pictures(page, f"After step {step} of 8"), [expected[step - 1]])
    assert not same(expected[5], expected[7])


def test_code_is_swapped(page, pipe):
    open_tab(page, "Codebook")
    fill(page, Steps=4, Seed=2)
    (example,) = pictures(page, "Before")
    press(page, "Draw an image")
    wait_until(lambda: (pictures(page, "Before")[0] != example).any())
    codes = pipe.vqvae.encode_codes(direct(pipe, 1, 4, 2, "dpmsolver++"))

    def decoded() -> np.ndarray:
        return np.asarray(pipe.decode_latents(pipe.vqvae.decode_codes(codes))[0])

    drawn = decoded()
    for label in ("Before", "After"):
        assert same(small(*pictures(page, label)), drawn)
    places = block(page, "Which code where").locator("img")
    box = places.bounding_box()
    places.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.4})  # row 2, column 3
    field = page.get_by_label("Code there")
    wait_until(lambda: field.input_value() == str(codes[0, 1, 2].item()))
    assert [page.get_by_label(f"number input for {name}").input_value() for name in ("Row", "Column")] == ["2", "3"]

    other = (codes[0, 1, 2].item() + 5) % 16
    field.fill(str(other))
    press(page, "Swap and decode")
    codes[0, 1, 2] = other
    assert not same(decoded(), drawn)
    wait_until(lambda: same(small(*pictures(page, "After")), decoded()))
    assert same(small(*pictures(page, "Before")), drawn)

    palette = block(page, "The patch of each code").locator("img")
    box = palette.bounding_box()
    palette.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.6})  # of 4 x 4 codes
    wait_until(lambda: field.input_value() == "11")

    field.fill("16")
    press(page, "Swap and decode")
    expect_message(page, "from 0 to 15, got 16")


def test_stop(page):
    open_tab(page, "Inpaint")
    choose_mask(page, "center")
    fill(page, Steps=200, Completions=16)
    page.get_by_label("number input for Walks").fill("10")  # 2,000 network calls
    press(page, "Inpaint")
    page.get_by_text("/2k network calls").wait_for()
    page.get_by_role("button", name="Stop").and_(page.locator(":visible")).click()
    expect_message(page, "Stopped")
    page.get_by_text("/2k network calls").wait_for(state="hidden")
    assert pictures(page, "Completions") == []
    fill(page, Steps=2, Completions=1)  # and the next one isn't held up
    press(page, "Inpaint")
    wait_for_text(page, "seed 0")


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_nothing_is_wider_than_a_phone(page):
    fill(page, Steps=2)
    for tab, button, done in (
        ("Generate", "Generate", "seed 15"),
        ("Inpaint", "Inpaint", "seed 6"),
        ("Chain", "Draw a chain", "After step 2 of 2"),
        ("Codebook", "Draw an image", "Before"),
    ):
        open_tab(page, tab)
        if tab == "Inpaint":
            choose_mask(page, "center")
        press(page, button)
        wait_for_text(page, done)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab
