"""Long calls as generators: they report their steps on the way, and end early when they are closed."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

Report = Callable[[int, int], None]
"""report(steps done, steps in all), called after each step."""


class Stopped(Exception):
    """The caller has closed the generator."""


def run_in_steps(work: Callable[[Report], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """
    Run `work(report)` in a thread; yield {"step": ..., "of": ...} after each of its steps, and its result at the end.

    When the generator is closed, which gradio does when a job is canceled or its browser tab is gone, `report` raises
    [`Stopped`] in the thread, so that the work ends with the step that it is at.
    """
    messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()

    def report(step: int, of: int) -> None:
        if stop.is_set():
            raise Stopped
        messages.put(("step", {"step": step, "of": of}))

    def run() -> None:
        try:
            messages.put(("result", work(report)))
        except BaseException as error:  # raised again in the generator
            messages.put(("error", error))

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            kind, value = messages.get()
            if kind == "error":
                raise value
            yield value
            if kind == "result":
                return
    finally:
        stop.set()  # the thread isn't waited for: it ends with its step
