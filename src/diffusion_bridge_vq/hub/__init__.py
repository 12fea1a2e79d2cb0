"""Pushing runs to the Hub."""

from .push import PushOptions, parse_push_options, push_run
from .uploader import upload_while_training

__all__ = ["PushOptions", "parse_push_options", "push_run", "upload_while_training"]
