"""Pushing runs to the Hub."""

from .push import PushOptions, push_run
from .uploader import upload_while_training

__all__ = ["PushOptions", "push_run", "upload_while_training"]
