"""What the tests of pushing share. The run that they push is the fixture `run`."""

from diffusion_bridge_vq.hub import push, uploader

LOGGERS = (push.logger, uploader.logger)


def own_files(hub, name):
    return {path: content for path, content in hub.files(name).items() if path != ".gitattributes"}
