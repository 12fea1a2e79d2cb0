"""Short hashes of models and tensors, to tell results of different ones apart."""

import json
from typing import Any

import torch
from diffusers import ConfigMixin
from torch import nn

from ..data.images import short_hash
from .arguments import check_model


def fingerprint(*components: Any) -> str:
    """
    16 hexadecimal digits over the configurations and weights of diffusers' components, on any device.

    Raises:
        TypeError: something else than a component.
    """
    parts = []
    for component in components:
        check_model("components", component, ConfigMixin)
        config = json.loads(component.to_json_string())
        public = {key: value for key, value in config.items() if not key.startswith("_")}  # no path, no version
        parts.append(json.dumps([type(component).__name__, public], sort_keys=True))
        if isinstance(component, nn.Module):
            for name, tensor in component.state_dict().items():
                parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {fingerprint_tensors(tensor)}")
    return short_hash(*(part.encode() for part in parts))


def fingerprint_tensors(*tensors: torch.Tensor) -> str:
    """16 hexadecimal digits over the bytes of tensors."""
    flat = (tensor.cpu().contiguous().flatten().view(torch.uint8) for tensor in tensors)
    return short_hash(*(values.numpy().tobytes() for values in flat))
