"""The landing of the page: pictures at once, controls, errors, jobs that are stopped."""

import numpy as np
import pytest
from on_the_page import (
    alerts,
    choose,
    draw,
    expect_alert,
    fill,
    open_picture,
    opened,
    pictures,
    press,
    same,
    wait_for_status,
)
from PIL import Image
from tiny_models import rng

pytestmark = pytest.mark.slow


def test_it_lands_on_pictures(page, demo):
    """They come with the page: no job has to end before."""
    assert page.locator("#sentence").inner_text().startswith("Each picture began as noise: in 12 steps")
    classes = demo.classes
    expected = demo.pipe(
        10,
        12,
        [rng(seed) for seed in range(10)],
        class_labels=list(range(10)),
        guidance_scale=demo.defaults["guidance_scale"],
    ).images
    assert same(pictures(page), [np.asarray(image) for image in expected])
    assert page.locator("#pictures .caption").all_inner_texts() == [
        f"{name.capitalize()}, seed {seed}" for seed, name in enumerate(classes)
    ]
    assert page.get_by_role("radio").all()[0].is_checked()  # "any"
    assert page.locator("#pictures img").first.bounding_box()["width"] > 150


def test_classes_have_names(page):
    names = page.locator(".controls .chip").all_inner_texts()[:11]
    assert " ".join(names) == "any airplane automobile bird cat deer dog frog horse ship truck"


def test_card_and_paper(page, address):
    assert page.get_by_role("link", name="Paper").get_attribute("href") == "https://arxiv.org/abs/2202.04895"
    page.get_by_role("link", name="Model card").click()
    page.get_by_role("heading", name="cifar10-small").first.wait_for()
    page.get_by_role("link", name="Back to the pictures").click()
    page.locator("#pictures img").first.wait_for()


def test_draw(page, demo):
    choose(page, "ship")
    shown = draw(page, Number_of_pictures=2, Seed=5, Steps=3, Guidance=1.5)
    labels = [demo.classes.index("ship")] * 2
    expected = demo.pipe(2, 3, [rng(5), rng(6)], class_labels=labels, guidance_scale=1.5).images
    assert same(shown, [np.asarray(image) for image in expected])
    assert page.locator("#pictures .caption").all_inner_texts() == ["Ship, seed 5", "Ship, seed 6"]
    assert "in 3 steps" in page.locator("#sentence").inner_text()


def test_another_sampler(page, demo):
    page.get_by_text("More options").click()
    page.get_by_label("Sampler").select_option("ancestral")
    choose(page, "horse")
    shown = draw(page, Number_of_pictures=1, Steps=3)
    call = {"class_labels": demo.classes.index("horse"), "guidance_scale": demo.defaults["guidance_scale"]}
    assert same(shown, [np.asarray(demo.pipe(1, 3, [rng()], solver="ancestral", **call).images[0])])


def test_dice_rolls_a_seed_that_is_shown(page):
    fill(page, Number_of_pictures=1, Steps=1)
    before = page.get_by_label("Seed", exact=True).input_value()
    page.locator(".field .dice").click()
    wait_for_status(page, "Done.")
    seed = page.get_by_label("Seed", exact=True).input_value()
    assert seed != before
    assert page.locator("#pictures .caption").inner_text().endswith(f", seed {seed}")


def test_speed_takes_fewer_steps(page):
    page.get_by_role("radio", name="Speed: 8 steps").check()
    steps = page.get_by_label("Steps", exact=True)
    assert steps.input_value() == "8"
    fill(page, Steps=5)
    assert not page.get_by_role("radio", name="Speed: 8 steps").is_checked()
    fill(page, Steps=12)
    assert page.get_by_role("radio", name="Quality: 12 steps").is_checked()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_opened_picture_is_larger_than_its_thumbnail(page, count):
    draw(page, Number_of_pictures=count, Steps=1)
    thumbnail = page.locator("#pictures img").first.bounding_box()
    open_picture(page)
    large = page.locator(".stage > img").bounding_box()
    assert large["width"] > 1.2 * thumbnail["width"] and large["height"] == large["width"]


def test_captions_and_buttons_cover_no_picture(page):
    cover = """() => {
        const boxes = [...document.querySelectorAll("#pictures img")].map((image) => image.getBoundingClientRect());
        const others = [...document.querySelectorAll("#pictures .caption, .below button")];
        return others.some((other) => { const b = other.getBoundingClientRect();
            const meets = (a) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
            return boxes.some(meets) }) }"""
    assert page.evaluate(cover) is False
    assert page.get_by_role("button", name="Share").count() == 0


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("Number_of_pictures", "2.5", "Number of pictures must be a whole number from 1 to 64."),
        ("Number_of_pictures", "65", "Number of pictures must be a whole number from 1 to 64."),
        ("Seed", "abc", "Seed must be a whole number from 0 to 2000000000."),
        ("Seed", "", "Seed must be a whole number from 0 to 2000000000."),
        ("Steps", "3.7", "Steps must be a whole number from 1 to 200."),
        ("Guidance", "0", "Guidance must be a number from 1 to 10."),
    ],
)
def test_a_wrong_number_is_refused_by_its_fields_name(page, demo, field, text, message):
    before = pictures(page)
    fill(page, **{field: text})
    press(page, "Draw")
    assert alerts(page) == [message]
    name = page.evaluate("document.activeElement.labels[0].textContent")
    assert name == field.replace("_", " ")  # the focus is there
    assert same(pictures(page), before) and page.locator(".stop:visible").count() == 0
    fill(page, **{field: "2"})
    assert alerts(page) == []


def test_limits_of_the_page_are_the_servers(page, demo):
    shown = page.evaluate("JSON.parse(document.getElementById('model').textContent).limits")
    assert shown
    for name, limit in shown.items():
        with pytest.raises(ValueError, match=f"from {limit['minimum']} to {limit['maximum']}, got"):
            demo.limits.check(**{name: limit["maximum"] + 1})


def test_an_error_of_the_server_is_shown(page, demo, monkeypatch):
    def generate(*args, **kwargs):
        raise ValueError("The model is asleep.")

    monkeypatch.setattr(demo, "generate", generate)
    press(page, "Draw")
    expect_alert(page, "The model is asleep.")
    monkeypatch.undo()
    draw(page, Number_of_pictures=1, Steps=1)
    assert alerts(page) == []


def test_a_server_that_is_gone_is_named(page):
    page.evaluate("() => { fetched = fetch; fetch = () => Promise.reject(new TypeError('Failed to fetch')) }")
    press(page, "Draw")
    expect_alert(page, "The server can't be reached. Is it still running?")
    assert page.locator(".stop:visible").count() == 0
    page.evaluate("() => { fetch = fetched }")
    draw(page, Number_of_pictures=1, Steps=1)


def test_nothing_to_stop_while_idle(page):
    assert page.locator(".stop:visible").count() == 0


def test_stop(page, demo):
    before = pictures(page)
    hold = demo.hold(seed := 101)
    fill(page, Number_of_pictures=1, Seed=seed, Steps=150)
    press(page, "Draw")
    wait_for_status(page, "Drawing: step")
    press(page, "Stop")
    wait_for_status(page, "Stopped.")
    assert alerts(page) == [] and same(pictures(page), before) and page.locator(".stop:visible").count() == 0
    draw(page, Seed=1, Steps=1)  # the next one isn't held up
    assert len(demo.steps[seed]) < 150
    hold.set()


def test_stop_while_queued(open_page, demo):
    hold = demo.hold(seed := 201)
    first, second = open_page(), open_page()
    fill(first, Number_of_pictures=1, Seed=seed, Steps=10)
    press(first, "Draw")
    wait_for_status(first, "Drawing: step")
    fill(second, Number_of_pictures=1, Seed=202, Steps=1)
    press(second, "Draw")
    wait_for_status(second, "Waiting for another job to end")
    with second.expect_response("**/cancel"):
        press(second, "Stop")
    wait_for_status(second, "Stopped.")
    assert alerts(second) == []
    # stopped before the page knows that it is in the queue
    second.evaluate("""() => { const joined = fetch; fetch = async (...request) => {
        const answer = await joined(...request)
        if (request[0].endsWith("queue/join")) { fetch = joined; document.querySelector(".stop").click() }
        return answer } }""")
    fill(second, Seed=204)
    with second.expect_response("**/cancel"):
        press(second, "Draw")
    wait_for_status(second, "Stopped.")
    hold.set()
    wait_for_status(first, "Done.")
    assert 202 not in demo.steps and 204 not in demo.steps
    draw(second, Seed=203)


def test_a_closed_tab_ends_its_job(open_page, demo):
    hold = demo.hold(seed := 301)
    first, second = open_page(), open_page()
    fill(first, Number_of_pictures=1, Seed=seed, Steps=150)
    press(first, "Draw")
    wait_for_status(first, "Drawing: step")
    first.close()
    draw(second, Number_of_pictures=1, Seed=302, Steps=1)
    assert len(demo.steps[seed]) < 150
    hold.set()


def test_downloads_are_named_by_model_class_and_seed(page, demo):
    choose(page, "ship")
    (shown,) = draw(page, Number_of_pictures=1, Seed=4, Steps=2)
    open_picture(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "cifar10-small_ship_seed4.png"
    with Image.open(download.value.path()) as file:
        assert same(np.asarray(file), shown) and '"seed": 4' in file.text["settings"]


def test_sheet_has_the_settings(page):
    page.evaluate("""() => { window.texts = []; const pen = CanvasRenderingContext2D.prototype, fill = pen.fillText
        pen.fillText = function (text, ...at) { texts.push(text); fill.call(this, text, ...at) } }""")
    choose(page, "ship")
    draw(page, Number_of_pictures=3, Seed=4, Steps=2, Guidance=2)
    with page.expect_download() as download:
        press(page, "Download all as one sheet")
    assert download.value.suggested_filename == "cifar10-small_ship_seeds4-6.png"
    assert page.evaluate("texts") == [
        *(f"Ship, seed {seed}" for seed in (4, 5, 6)),
        "cifar10-small: class ship, seeds 4 to 6, unselected",
        "2 steps, guidance 2, sampler dpmsolver++",
    ]
    sheet = np.asarray(opened("file://" + str(download.value.path())))
    first = pictures(page)[0]
    assert (sheet[16:208:6, 16:208:6, :3] == first).all()  # enlarged 6 times
