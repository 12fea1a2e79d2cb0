"""What the tests of pushing share. The run that they push is the fixture `run`."""

import contextlib

from diffusion_bridge_vq.hub import push, uploader


def own_files(hub, name):
    return {path: content for path, content in hub.files(name).items() if path != ".gitattributes"}


@contextlib.contextmanager
def heard(caplog):
    """diffusers' loggers don't pass on what they hear."""
    loggers = [push.logger, uploader.logger]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield
    for logger in loggers:
        logger.removeHandler(caplog.handler)
