"""Noise schedulers."""

from .scheduling_ou_bridge import OUBridgeScheduler, OUBridgeSchedulerOutput

__all__ = ["OUBridgeScheduler", "OUBridgeSchedulerOutput"]
