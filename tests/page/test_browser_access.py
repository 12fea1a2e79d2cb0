"""The page for everybody: axe, keys, visible focus, a phone."""

import numpy as np
import pytest
from on_the_page import (
    DESK,
    PHONE,
    alerts,
    draw,
    fill,
    hidden,
    open_chapter,
    open_picture,
    press,
    violations,
    wait_for_status,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light")], ids=["desk", "dark", "phone"]
)
def test_axe_finds_nothing(open_page, viewport, scheme):
    page = open_page(viewport, scheme)
    draw(page, Number_of_pictures=2, Steps=2)
    assert violations(page) == []
    open_picture(page)
    assert violations(page) == []
    open_chapter(page, "Complete part of it")
    page.locator(".panel summary").click()
    fill(page, Steps=1, Resampling=1, Number_of_completions=2)
    press(page, "Complete")
    page.locator(".panel .tile").first.wait_for()
    assert violations(page) == []
    open_chapter(page, "Show how it came about")
    page.locator(".strip .tile").first.wait_for()
    assert violations(page) == []
    open_chapter(page, "Show its codes")
    page.locator(".cell").first.wait_for()
    page.locator(".code").nth(7).click()
    page.locator(".pair:visible").wait_for()
    assert violations(page) == []


def test_axe_finds_nothing_in_errors_and_the_card(page):
    fill(page, Seed="abc", Steps="0", Guidance="x")
    press(page, "Draw")
    assert violations(page) == []
    page.get_by_role("link", name="Model card").click()
    page.get_by_role("heading").first.wait_for()
    assert violations(page) == []


def tab_to(page, locator, most: int = 80) -> None:
    for _ in range(most):
        if locator.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never reaches {locator}")


def test_focus_is_visible_wherever_tab_goes(page):
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        shown = page.evaluate("""() => { const at = document.activeElement; if (at === document.body) return null
            const outlined = (style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2
            const labels = [at, at.nextElementSibling].filter(Boolean)
            return [at.outerHTML.slice(0, 80), labels.some((one) => outlined(getComputedStyle(one)))] }""")
        if shown is None:
            break
        seen.append(shown)
    assert len(seen) >= 12
    assert [element for element, outlined in seen if not outlined] == []


def test_all_by_keyboard(page):
    tab_to(page, page.get_by_role("radio", name="any"))
    for _ in range(9):
        page.keyboard.press("ArrowRight")  # to the ship
    for label, text in (("Number of pictures", "1"), ("Seed", "3")):
        tab_to(page, page.get_by_label(label, exact=True))
        page.keyboard.press("Control+a")
        page.keyboard.type(text)
    tab_to(page, page.get_by_role("radio", name="Quality: 12 steps"))
    page.keyboard.press("ArrowRight")
    tab_to(page, page.get_by_role("button", name="Draw", exact=True))
    page.keyboard.press("Enter")
    wait_for_status(page, "Done.")
    tab_to(page, page.get_by_role("button", name="Open Ship, seed 3"))
    page.keyboard.press("Enter")

    # the map of patches: arrows go, space paints
    tab_to(page, page.locator(".chapter", has_text="Complete part of it"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="nothing hidden"))
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.evaluate("document.querySelector('.patch[tabindex=\"0\"]').focus()")
    for key in ("ArrowDown", "ArrowRight", "Space", "ArrowRight", "Space", "ArrowDown", "End", "Space"):
        page.keyboard.press(key)
    expected = np.zeros((8, 8), bool)
    expected[1, 1:3] = expected[2, 7] = True
    assert (hidden(page) == expected).all()

    # the codes and the palette
    tab_to(page, page.locator(".chapter", has_text="Show its codes"))
    page.keyboard.press("Enter")
    page.locator(".cell").first.wait_for()
    page.keyboard.press("Shift+Tab")
    while "cell" not in page.evaluate("document.activeElement.className"):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowUp")
    assert page.locator(".now").inner_text().startswith("Row 4, column 5 has code")
    tab_to(page, page.locator(".code[tabindex='0']"))
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    code = page.evaluate("document.activeElement.ariaLabel")
    page.keyboard.press("Enter")
    page.get_by_text("One swap changed").wait_for()
    assert page.locator(".cell[aria-pressed=true]").get_attribute("aria-label") == f"row 4, column 5: {code}"


def test_stopping_by_keyboard_keeps_the_focus_near(page, demo):
    hold = demo.hold(401)
    fill(page, Number_of_pictures=1, Seed=401, Steps=100)
    press(page, "Draw")
    tab_to(page, page.get_by_role("button", name="Stop"))
    page.keyboard.press("Enter")
    wait_for_status(page, "Stopped.")
    assert page.evaluate("document.activeElement.textContent") == "Draw"
    hold.set()


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_has_the_action_beside_its_result(page):
    def wider() -> int:
        return page.evaluate("document.documentElement.scrollWidth") - PHONE["width"]

    draw_button = page.get_by_role("button", name="Draw", exact=True).bounding_box()
    first = page.locator("#pictures img").first.bounding_box()
    assert first["y"] + first["height"] < draw_button["y"] < PHONE["height"]  # both on the first screen
    assert wider() <= 0
    draw(page, Number_of_pictures=2, Steps=1)
    page.locator("#pictures img").last.scroll_into_view_if_needed()
    box = page.get_by_role("button", name="Draw", exact=True).bounding_box()
    assert 0 < box["y"] < box["y"] + box["height"] < PHONE["height"]  # it stays
    open_picture(page)
    page.locator(".chapter").first.scroll_into_view_if_needed()
    at = page.evaluate("scrollY")
    for chapter in ("Complete part of it", "Show how it came about", "Show its codes"):
        open_chapter(page, chapter)
        page.wait_for_timeout(300)
        assert wider() <= 0 and page.evaluate("scrollY") == at, chapter  # the picture stays where it was
    open_chapter(page, "Complete part of it")
    fill(page, Steps=1, Resampling=1, Number_of_completions=1)
    page.locator(".panel summary").click()  # fold the options again
    press(page, "Complete")
    page.locator(".panel .tile").first.wait_for()
    wait_for_status(page, "Done.")
    button = page.get_by_role("button", name="Complete", exact=True).bounding_box()
    assert 0 < page.locator(".panel .tile").first.bounding_box()["y"] - button["y"] - button["height"] < 80


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_wrong_number_that_is_folded_away_is_shown(page):
    fill(page, Steps="0")
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = false")
    press(page, "Draw")
    assert alerts(page) == ["Steps must be a whole number from 1 to 200."]
    assert page.evaluate("document.activeElement.labels[0].textContent") == "Steps"


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_finger_paints_patches_and_scrolls_over_codes(page):
    open_picture(page)
    open_chapter(page, "Complete part of it")
    press(page, "nothing hidden")
    page.evaluate("scrollTo(0, 0)")
    finger, box = page.context.new_cdp_session(page), page.locator(".layer").bounding_box()

    def touch(kind: str, *points: tuple[float, float]) -> None:
        points = [{"x": box["x"] + box["width"] * x / 8, "y": box["y"] + box["height"] * y / 8} for x, y in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (2.5, 1.5))
    for y in (2, 2.5, 3, 3.5, 4, 4.5):
        touch("touchMove", (2.5, y))
    touch("touchEnd")
    expected = np.zeros((8, 8), bool)
    expected[1:5, 2] = True
    assert (hidden(page) == expected).all() and page.evaluate("scrollY") == 0

    open_chapter(page, "Show its codes")
    page.locator(".cell").first.wait_for()
    touch("touchStart", (2.5, 6))
    for y in (5, 4, 3, 2, 1):
        touch("touchMove", (2.5, y))
    touch("touchEnd")
    page.wait_for_function("scrollY > 50")
