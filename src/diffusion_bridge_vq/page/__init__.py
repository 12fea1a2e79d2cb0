"""The demo page: a small web page and the API behind it. `server` needs gradio, the extra `demo`; the rest doesn't."""

from .demo import Demo
from .limits import Limits

__all__ = ["Demo", "Limits"]
