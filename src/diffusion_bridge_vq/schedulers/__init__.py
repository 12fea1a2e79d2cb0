"""Noise schedulers."""

from .scheduler_output import OUBridgeSchedulerOutput
from .scheduling_ou_bridge import OUBridgeScheduler

__all__ = ["OUBridgeScheduler", "OUBridgeSchedulerOutput"]
