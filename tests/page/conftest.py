"""The page on a server in this process, and headless Chromium to open it."""

import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from on_the_page import DESK, PATIENCE, PHONE

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.page import Demo

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class WatchedDemo(Demo):
    """A demo that notes which steps are done for which seed, and holds a job at its second step on demand."""

    def __init__(self, *args: Any):
        self.steps: dict[int, list[int]] = defaultdict(list)
        self.holds: dict[int, threading.Event] = {}
        super().__init__(*args)

    def hold(self, seed: int) -> threading.Event:
        """Jobs of that seed take as long as it takes until the event is set, a little for each step."""
        return self.holds.setdefault(seed, threading.Event())

    def generate(self, report, class_name="any", num_images=None, seed=None, *args: Any, **kwargs: Any):
        def watched(step: int, of: int) -> None:
            report(step, of)
            self.steps[seed].append(step)
            if seed in self.holds:
                self.holds[seed].wait(0.2)

        return super().generate(watched, class_name, num_images, seed, *args, **kwargs)


@pytest.fixture(scope="session")
def demo() -> WatchedDemo:
    """The small CIFAR-10 model: classes, color, 8 x 8 codes."""
    return WatchedDemo(DiffusionBridgeVQPipeline.from_pretrained(ROOT / "checkpoints" / "cifar10-small"))


@pytest.fixture(scope="session")
def serve() -> Any:
    """serve(demo): its address, until the generator goes on."""

    def serve(demo: Demo) -> Iterator[str]:
        server = pytest.importorskip(
            "diffusion_bridge_vq.page.server", reason="the page needs gradio: the extra `demo`", exc_type=ImportError
        )
        app, address, _ = server.launch(demo, prevent_thread_lock=True, quiet=True)
        yield address.rstrip("/")
        app.get_blocks().close(verbose=False)

    return serve


@pytest.fixture(scope="session")
def address(serve, demo) -> Iterator[str]:
    yield from serve(demo)


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium: `apt-get install chromium`")
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Open the page in a session of its own; at the end, nothing was fetched from the net and no script failed."""
    contexts, hosts, errors = [], set(), []

    def open(viewport: dict[str, int] = DESK, scheme: str = "light"):
        touch = viewport == PHONE
        contexts.append(
            browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=touch, accept_downloads=True)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("request", lambda r: hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.locator("#pictures img").first.wait_for()
        return page

    yield open
    for context in contexts:
        context.close()
    assert hosts <= {address.removeprefix("http://")}, "the page fetches from the net"
    assert errors == []


@pytest.fixture
def page(open_page, request):
    return open_page(getattr(request, "param", DESK))
