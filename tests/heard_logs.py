import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def heard(caplog: pytest.LogCaptureFixture, *loggers: logging.Logger) -> Iterator[None]:
    """What they say inside is in `caplog`, too: diffusers' loggers don't pass on what they hear."""
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
