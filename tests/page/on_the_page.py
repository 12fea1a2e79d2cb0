"""What a reader does on the page, and sees there."""

import io
import urllib.request
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from PIL import Image

PATIENCE = 60  # seconds, for a busy machine
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def opened(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(urllib.request.urlopen(data_url).read()))


def pixels(locator) -> np.ndarray:
    """Of an `img`, at the model's size."""
    return np.asarray(opened(locator.get_attribute("src")))


def pictures(page, where: str = "#pictures") -> list[np.ndarray]:
    images = page.locator(f"{where} .tile img")
    return [pixels(images.nth(i)) for i in range(images.count())]


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).and_(page.locator(":visible")).click()


def fill(page, **values: Any) -> None:
    """Fields by their labels, with "_" for spaces; those folded away are unfolded."""
    for label, value in values.items():
        field = page.get_by_label(label.replace("_", " "), exact=True).and_(page.locator("input")).last
        field.evaluate(
            "input => { for (let at = input; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true }"
        )
        field.fill(str(value))


def choose(page, name: str) -> None:
    """A class."""
    page.get_by_role("radio", name=name, exact=True).and_(page.locator(":visible")).check()


def draw(page, **values: Any) -> list[np.ndarray]:
    """Draw with these values, and wait for the pictures."""
    fill(page, **values)
    page.get_by_role("button", name="Draw", exact=True).click()
    wait_for_status(page, "Done.")
    return pictures(page)


def wait_for_status(page, text: str) -> None:
    page.get_by_role("status").filter(has_text=text).and_(page.locator(":visible")).first.wait_for()


def open_picture(page, number: int = 0) -> None:
    page.locator("#pictures .tile").nth(number).click()
    page.locator(".stage > img").wait_for()


def open_chapter(page, name: str) -> None:
    page.locator(".chapter", has_text=name).click()


def alerts(page) -> list[str]:
    """The errors that are shown."""
    shown = page.get_by_role("alert").and_(page.locator(":visible"))
    return [text for text in shown.all_inner_texts() if text]


def expect_alert(page, text: str) -> None:
    page.get_by_role("alert").filter(has_text=text).and_(page.locator(":visible")).first.wait_for()


def hidden(page) -> np.ndarray:
    """The map of patches that are hidden of the opened picture."""
    pressed = page.locator(".patch").evaluate_all("cells => cells.map(cell => cell.ariaPressed === 'true')")
    side = int(len(pressed) ** 0.5)
    return np.array(pressed).reshape(side, side)


def same(shown, expected) -> bool:
    """Up to one level of 255: another batch may round otherwise."""
    return np.shape(shown) == np.shape(expected) and np.allclose(shown, expected, rtol=0, atol=1)


def violations(page) -> list[str]:
    """What axe finds."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-core comes with axe-playwright-python")
    page.evaluate((files(axe) / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [f"{one['id']}: {node['html'][:120]} {node['failureSummary']}" for one in found for node in one["nodes"]]
