"""The page of other kinds of models: of words, without classes, of few steps."""

import numpy as np
import pytest
from on_the_page import (
    DESK,
    PATIENCE,
    alerts,
    draw,
    expect_alert,
    fill,
    open_chapter,
    open_picture,
    pictures,
    press,
    same,
    violations,
)
from PIL import Image
from tiny_models import make_conditioned_pipeline, make_gray_pipeline, make_student_pipeline, make_words_pipeline, rng

from diffusion_bridge_vq.page import Demo

pytestmark = pytest.mark.slow
EXAMPLES = ["Red cat", "blue dog", "dog", "cat"]
MAKE = {
    "words": lambda: make_words_pipeline(EXAMPLES),
    "student": lambda: make_student_pipeline(5),
    "gray": make_gray_pipeline,
}
MAKE |= {"drawn from pictures": make_conditioned_pipeline}


@pytest.fixture(scope="module", params=MAKE)
def demo(request) -> Demo:
    return Demo(MAKE[request.param](), request.param)


@pytest.fixture(scope="module")
def address(serve, demo):
    yield from serve(demo)


def labels(page) -> list[str]:
    """Of all fields on the landing."""
    return page.locator(".controls legend, .controls .field label").all_text_contents()


@pytest.mark.parametrize("demo", ["words"], indirect=True)
def test_words_are_typed(page, demo):
    assert labels(page)[0] == "Words" and "Class" not in labels(page)
    assert page.locator("#pictures .caption").all_inner_texts()[:2] == ["Red cat, seed 0", "Blue dog, seed 1"]
    assert page.get_by_label("Words").get_attribute("placeholder") == "Red cat"
    fill(page, Words="red cat", Guidance=3)
    (shown,) = draw(page, Number_of_pictures=1, Seed=2, Steps=4)
    expected = demo.pipe(1, 4, rng(2), class_labels="red cat", guidance_scale=3.0).images[0]
    assert same(shown, np.asarray(expected))
    assert page.locator("#pictures .caption").all_inner_texts() == ["Red cat, seed 2"]

    open_picture(page)
    open_chapter(page, "Complete part of it")
    words = page.get_by_label("Words").and_(page.locator(":visible"))
    assert words.input_value() == "red cat"
    fill(page, Number_of_completions=2, Steps=2, Resampling=1)
    press(page, "Complete")
    page.locator(".panel .tile").first.wait_for()
    by_word = pictures(page, ".panel")
    assert len(by_word) == 2 and violations(page) == []

    press(page, "← Back")
    fill(page, Words="red fox")
    press(page, "Draw")
    expect_alert(page, "doesn't know 'fox'")
    assert same(pictures(page), [np.asarray(expected)]) and violations(page) == []
    fill(page, Words="")
    draw(page, Number_of_pictures=4, Seed=0, Steps=1)
    assert page.locator("#pictures .caption").all_inner_texts() == [
        f"{text}, seed {seed}" for seed, text in enumerate(("Red cat", "Blue dog", "Dog", "Cat"))
    ]


@pytest.mark.parametrize("demo", ["student"], indirect=True)
def test_a_model_of_few_steps_offers_what_it_can(page, demo):
    assert "in 1 step a diffusion bridge" in page.locator("#sentence").inner_text()
    assert labels(page) == ["Class", "Number of pictures", "Seed", "Steps"]  # no guidance, no sampler
    (shown,) = draw(page, Number_of_pictures=1, Seed=2, Steps=2)
    assert same(shown, np.asarray(demo.pipe(1, 2, rng(2), class_labels=2).images[0]))
    fill(page, Steps=3)
    assert alerts(page) == ["Steps must be a whole number from 1 to 2."]
    open_picture(page)
    assert page.locator(".chapter b").all_inner_texts() == ["Show how it came about", "Show its codes"]
    assert page.get_by_text("A model of few steps can't complete pictures").is_visible()
    open_chapter(page, "Show how it came about")
    page.locator(".strip .tile").first.wait_for()
    assert page.locator(".strip .caption").all_inner_texts() == ["noise", "step 1", "step 2"]


@pytest.mark.parametrize("demo", ["gray"], indirect=True)
def test_a_model_without_classes_asks_for_none(page, demo):
    assert labels(page) == ["Number of pictures", "Seed", "Quality or speed", "Steps", "Sampler"]
    (shown,) = draw(page, Number_of_pictures=1, Seed=4, Steps=3)
    assert same(shown, np.asarray(demo.pipe(1, 3, rng(4)).images[0]))
    open_picture(page)
    open_chapter(page, "Complete part of it")
    assert page.locator(".panel legend, .panel .field label").all_text_contents() == [
        "Number of completions",
        "Seed",
        "Steps",
        "Resampling",
    ]


@pytest.mark.parametrize("demo", ["drawn from pictures"], indirect=True)
def test_a_picture_to_draw_from(browser, address, demo, tmp_path):
    """The page opens without pictures and asks for one; then it draws, and shows how it came about."""
    given = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(given).save(tmp_path / "gray.png")
    page = browser.new_page(viewport=DESK)
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(address)
    page.get_by_text("This model draws from a picture. Choose one, and draw.").wait_for()
    press(page, "Draw")
    expect_alert(page, "Choose a picture to draw from.")
    page.get_by_label("Draw from a picture").set_input_files(tmp_path / "gray.png")
    page.locator("img.given").wait_for()
    (shown,) = draw(page, Number_of_pictures=1, Seed=2, Steps=4)
    expected = np.asarray(demo.pipe(1, 4, rng(2), condition=Image.fromarray(given)).images[0])
    assert same(shown, expected) and violations(page) == []
    open_picture(page)
    open_chapter(page, "Show how it came about")
    page.get_by_text("Step 4 of 4: the picture").wait_for()
    page.close()
