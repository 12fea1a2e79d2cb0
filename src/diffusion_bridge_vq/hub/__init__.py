"""Pushing runs and encoded data sets to the Hub."""

from .encoded import push_encoded
from .push import PushOptions, push_run
from .uploader import upload_while_training

__all__ = ["PushOptions", "push_encoded", "push_run", "upload_while_training"]
