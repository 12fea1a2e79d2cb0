"""
Counts what would make the host wait for the device, without one: on "meta" tensors reading a value, copying between
devices and indexing by masks are operators that can be seen.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostWaits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func), kwargs or {}
        devices = {a.device.type for a in args if isinstance(a, torch.Tensor)}
        if "_local_scalar_dense" in name and "meta" in devices:
            self.seen.append(name)
            return 0.0
        masks = any(part in name for part in ("nonzero", "masked_select", "bincount")) and "meta" in devices
        if kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        if masks or ("copy" in name and len(devices) > 1):
            self.seen.append(name)
        return func(*args, **kwargs)
