"""Measuring what models make."""

from .intervals import wilson_interval

__all__ = ["wilson_interval"]
