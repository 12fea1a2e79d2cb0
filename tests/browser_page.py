"""What a reader does on the page of examples/app.py, and sees there."""

import io
import time
import urllib.request

import numpy as np
from PIL import Image

PATIENCE = 30  # seconds, for a busy machine


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


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def press(page, name: str) -> None:
    page.get_by_role("button", name=name).click()


def wait_for_text(page, text: str) -> None:
    page.get_by_text(text, exact=True).and_(page.locator(":visible")).wait_for()


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


def same(shown, expected) -> bool:
    """Up to one level of 255: another process may round otherwise."""
    return np.shape(shown) == np.shape(expected) and np.allclose(shown, expected, rtol=0, atol=1)
