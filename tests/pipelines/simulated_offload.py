"""What `enable_model_cpu_offload` does on a GPU, made visible without one."""

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import DiffusionPipeline


class Asleep(ModelHook):
    """The weights are away (zero) until the hook before a use brings them back."""

    def __init__(self, module: torch.nn.Module, name: str, used: list[str]):
        self.weights, self.name, self.used = {k: v.clone() for k, v in module.state_dict().items()}, name, used
        with torch.no_grad():
            for tensor in module.state_dict().values():
                tensor.zero_()

    def pre_forward(self, module, *args, **kwargs):
        module.load_state_dict(self.weights)
        self.used.append(self.name)
        return args, kwargs


def offload(pipe: DiffusionPipeline, monkeypatch) -> list[str]:
    """Puts all networks to sleep -> names of those that a call wakes, in order, and "freed" where it lets go."""
    used: list[str] = []
    for name, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            add_hook_to_module(module, Asleep(module, name, used))
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: used.append("freed"))
    return used
