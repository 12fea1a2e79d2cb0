"""One picture, opened: complete part of it, show how it came about, show its codes."""

import numpy as np
import pytest
from on_the_page import (
    alerts,
    choose,
    draw,
    expect_alert,
    fill,
    hidden,
    open_chapter,
    open_picture,
    opened,
    pictures,
    pixels,
    press,
    same,
    wait_for_status,
)
from PIL import Image
from tiny_models import rng

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline
from diffusion_bridge_vq.page.pictures import to_data_url

pytestmark = pytest.mark.slow
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


@pytest.fixture
def ship(page):
    """The page, with a ship opened."""
    choose(page, "ship")
    draw(page, Number_of_pictures=2, Seed=5, Steps=3)
    open_picture(page)
    return page


def complete(page, **values) -> list[np.ndarray]:
    fill(page, **values)
    press(page, "Complete")
    page.locator(".panel .tile").first.wait_for()
    wait_for_status(page, "Done.")
    return pictures(page, ".panel")


def upload(page, path) -> None:
    page.locator("input[type=file]").set_input_files(path)


def test_back_and_next(ship):
    assert ship.get_by_role("heading", name="Ship, seed 5").is_visible()
    press(ship, "Next")
    assert ship.get_by_role("heading", name="Ship, seed 6").is_visible()
    assert ship.get_by_role("button", name="Next", exact=True).is_disabled()
    press(ship, "← Back")
    ship.locator("#pictures .tile").first.wait_for()
    assert ship.evaluate("document.activeElement.ariaLabel") == "Open Ship, seed 5"  # where one was before


# ------------------------------------------------------------------------------------------------------ completing


def test_masks_hide_what_their_names_say(ship):
    open_chapter(ship, "Complete part of it")
    assert (hidden(ship) == (np.arange(8) >= 4)).all()  # at first, the left half is given
    press(ship, "center hidden")
    mask = hidden(ship)
    assert (mask == mask[::-1]).all() and (mask == mask[:, ::-1]).all() and mask.sum() == 16
    press(ship, "top half given")
    assert (hidden(ship) == (np.arange(8) >= 4)[:, None]).all()
    press(ship, "left half given")
    given = pixels(ship.locator(".stage > img"))
    ship.get_by_text("More options").and_(ship.locator(":visible")).click()
    ship.get_by_label("Keep the given pixels exactly").check()
    completions = complete(ship, Number_of_completions=2, Steps=2, Resampling=1)
    assert len(completions) == 2 and not same(*completions)
    for completion in completions:
        assert (completion[:, :16] == given[:, :16]).all() and (completion[:, 16:] != given[:, 16:]).any()


def test_a_completion_is_of_the_pictures_class(ship, demo):
    open_chapter(ship, "Complete part of it")
    press(ship, "top half given")
    assert ship.get_by_role("radio", name="ship").and_(ship.locator(":visible")).is_checked()
    given = Image.fromarray(pixels(ship.locator(".stage > img")))
    (completion,) = complete(ship, Number_of_completions=1, Steps=3, Resampling=2, Seed=9)
    mask = Image.fromarray(np.uint8(255 * (np.arange(32) >= 16)[:, None].repeat(32, 1)))
    call = {"class_labels": 8, "guidance_scale": demo.defaults["guidance_scale"], "jump_n_sample": 2}
    inpaint = DiffusionBridgeVQInpaintPipeline(demo.vqvae, demo.pipe.unet, demo.pipe.scheduler)
    (expected,) = inpaint(given, mask, 3, generator=rng(9), **call).images
    assert same(completion, np.asarray(expected))
    assert ship.get_by_text("Where a seam shows").is_hidden()  # the decoder painted all


def test_a_photo_is_completed_without_a_class(page, demo, tmp_path):
    Image.new("RGB", (60, 40), (200, 180, 20)).save(tmp_path / "my photo.png")
    upload(page, tmp_path / "my photo.png")
    page.get_by_role("heading", name="My photo.png").wait_for()
    assert page.get_by_text("Scaled and cropped from 60 × 40 to 32 × 32").is_visible()
    open_chapter(page, "Complete part of it")
    assert page.get_by_role("radio", name="no class").is_checked()
    (completion,) = complete(page, Number_of_completions=1, Steps=2, Resampling=1)
    photo = Image.new("RGB", (32, 32), (200, 180, 20))
    mask = Image.fromarray(np.uint8(255 * (np.arange(32) >= 16)[None].repeat(32, 0)))
    inpaint = DiffusionBridgeVQInpaintPipeline(demo.vqvae, demo.pipe.unet, demo.pipe.scheduler)
    (expected,) = inpaint(photo, mask, 2, generator=rng(), composite_strength=1.0).images
    assert same(completion, np.asarray(expected))
    assert page.get_by_text("Where a seam shows, switch that off").is_visible()
    assert page.locator(".chapter", has_text="Show how it came about").count() == 0  # nobody drew it


@pytest.mark.parametrize("kind", ["flat", "text"])
def test_files_that_are_no_pictures(page, tmp_path, kind):
    path = tmp_path / "mine.png"
    if kind == "flat":
        Image.new("RGB", (40, 9)).save(path)
    else:
        path.write_text("no image")
    upload(page, path)
    expect_alert(page, "has 40 x 9 pixels" if kind == "flat" else "can't be read as a picture")
    assert alerts(page)[0].startswith("mine.png: ")


def test_nothing_hidden_clears_the_mask_and_keeps_the_picture(ship):
    """There is one way to remove, and it removes the strokes."""
    open_chapter(ship, "Complete part of it")
    before = pixels(ship.locator(".stage > img"))
    ship.locator(".patch").first.click()
    press(ship, "nothing hidden")
    assert not hidden(ship).any() and same(pixels(ship.locator(".stage > img")), before)
    press(ship, "Complete")
    assert alerts(ship) == ["Nothing is hidden. Click the patches that are to be drawn anew, or choose a mask."]
    assert ship.locator(".stop:visible").count() == 0


def test_patches_are_painted_by_dragging(ship):
    open_chapter(ship, "Complete part of it")
    press(ship, "nothing hidden")
    box = ship.locator(".layer").bounding_box()
    at = [(box["x"] + box["width"] * (x + 0.5) / 8, box["y"] + box["height"] * 2.5 / 8) for x in range(8)]
    ship.mouse.move(*at[1])
    ship.mouse.down()
    for place in at[2:6]:
        ship.mouse.move(*place, steps=4)
    ship.mouse.up()
    expected = np.zeros((8, 8), bool)
    expected[2, 1:6] = True
    assert (hidden(ship) == expected).all()
    ship.mouse.click(*at[3])  # and given back
    expected[2, 3] = False
    assert (hidden(ship) == expected).all()


def test_a_completion_is_opened_and_left(ship):
    open_chapter(ship, "Complete part of it")
    (completion,) = complete(ship, Number_of_completions=1, Steps=2, Resampling=1)
    ship.locator(".panel .tile").click()
    assert ship.get_by_role("heading", name="Completion, seed 0").is_visible()
    assert same(pixels(ship.locator(".stage > img")), completion)
    open_chapter(ship, "Show its codes")
    ship.locator(".cell").first.wait_for()
    press(ship, "← Back")
    assert ship.get_by_role("heading", name="Ship, seed 5").is_visible()
    assert same(pictures(ship, ".panel"), [completion])  # still there
    ship.go_forward()  # a completion that was left isn't kept, and the ship stays
    assert ship.get_by_role("heading", name="Ship, seed 5").is_visible()
    press(ship, "← Back")
    ship.locator("#pictures .tile").first.wait_for()


# ------------------------------------------------------------------------------------------------------- the chain


def test_chain_begins_with_noise_and_is_scrubbed(ship, demo):
    open_chapter(ship, "Show how it came about")
    ship.locator(".strip .tile").first.wait_for()
    expected = demo.chain(lambda *step: None, "ship", 5, 3)["frames"]
    assert ship.locator(".strip .caption").all_inner_texts() == ["noise", "step 1", "step 2", "step 3"]
    assert same(pictures(ship, ".strip"), [np.asarray(opened(frame["png"])) for frame in expected])
    slider = ship.get_by_role("slider", name="Step")
    slider.focus()
    ship.keyboard.press("End")
    ship.get_by_text("Step 3 of 3: the picture").wait_for()
    for text, key in (("Step 2 of 3", "ArrowLeft"), ("Noise, before the first step", "Home")):
        ship.keyboard.press(key)
        assert ship.locator(".now").inner_text() == text and slider.get_attribute("aria-valuetext") == text
    assert same(pixels(ship.locator(".stage > img")), np.asarray(opened(expected[0]["png"])))


def test_a_chain_of_one_step_and_an_arrow_key(page):
    draw(page, Number_of_pictures=1, Steps=1)
    open_picture(page)
    open_chapter(page, "Show how it came about")
    page.locator(".strip .tile").first.wait_for()
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    assert page.locator(".now").inner_text() == "Step 1 of 1: the picture" and alerts(page) == []


# ------------------------------------------------------------------------------------------------------- the codes


def test_codes_are_shown_and_swapped(ship, demo):
    open_chapter(ship, "Show its codes")
    ship.locator(".cell").first.wait_for()
    drawn = demo.generate(lambda *step: None, "ship", 1, 5, 3)["images"][0]
    codes = drawn["codes"]
    numbers = [int(text) for text in ship.locator(".cell span").all_inner_texts()]
    assert numbers == [code for row in codes for code in row]

    ship.locator(".cell").nth(8 * 2 + 3).click()  # row 3, column 4
    assert ship.locator(".now").inner_text().startswith(f"Row 3, column 4 has code {codes[2][3]}.")
    assert (
        ship.locator(".cell[aria-pressed=true]").get_attribute("aria-label") == f"row 3, column 4: code {codes[2][3]}"
    )
    assert ship.locator(".code[aria-pressed=true]").get_attribute("aria-label") == f"code {codes[2][3]}"
    same_code = ship.locator(".cell.same span").all_inner_texts()
    assert same_code == [str(codes[2][3])] * sum(row.count(codes[2][3]) for row in codes)

    before, other = pixels(ship.locator(".stage > img")), (codes[2][3] + 128) % 256
    ship.locator(".code").nth(other).click()
    ship.get_by_text("One swap changed").wait_for()
    codes[2][3] = other
    after = np.asarray(opened(demo.decode(codes)["png"]))
    assert same(pixels(ship.locator(".stage > img")), after)
    assert same(pixels(ship.get_by_alt_text("Before the swaps")), before)
    changed = (abs(after.astype(int) - before) > 12).any(-1)
    text = ship.get_by_text("One swap changed").inner_text()
    assert int(text.split()[3]) == pytest.approx(changed.sum(), abs=2)
    # what is outlined is what changed
    marked = ship.locator(".marked canvas").evaluate("""canvas => {
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
        const cell = canvas.width / 32
        return Array.from({length: 1024}, (_, i) => { const x = (i % 32) * cell, y = Math.floor(i / 32) * cell
            for (let dy = 0; dy < cell; dy++) for (let dx = 0; dx < cell; dx++)
                if (data[4 * ((y + dy) * canvas.width + x + dx) + 3]) return true
            return false }) }""")
    assert (~changed & np.reshape(marked, (32, 32))).sum() <= 2 and any(marked)

    press(ship, "Undo all swaps")
    ship.get_by_text("One swap changed").wait_for(state="hidden")
    assert same(pixels(ship.locator(".stage > img")), before)


def test_codes_of_a_photo(page, demo, tmp_path):
    NOISE.save(tmp_path / "noise.png")
    upload(page, tmp_path / "noise.png")
    open_chapter(page, "Show its codes")
    page.locator(".cell").first.wait_for()
    encoded = demo.encode(to_data_url(NOISE))
    assert [int(text) for text in page.locator(".cell span").all_inner_texts()] == np.ravel(encoded["codes"]).tolist()
    assert same(pixels(page.locator(".stage > img")), np.asarray(opened(encoded["decoded"])))
