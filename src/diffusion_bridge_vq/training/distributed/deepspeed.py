"""
DeepSpeed's ZeRO, stages 1 and 2, as Accelerate drives it: AdamW's moments, from stage 2 on gradients, too, are split
over processes, and so is a second float32 copy of the weights, which AdamW steps. The module's own stay whole.

Its engine clips and steps inside `accelerator.backward`. The optimizer in there is still torch's fused AdamW, which
takes `found_inf`: see `NonFiniteDetector`. Nothing here imports deepspeed before a run was launched with it.
"""

from typing import Any

import torch
from accelerate import Accelerator

from ..config import RunConfig
from ..objectives import ObjectiveOutput
from ..optimizer_step import Update

_STAGES = (1, 2)
_MOMENTS = ("exp_avg", "exp_avg_sq")
# elements; DeepSpeed's 500 million would take 2 GB on each process, more than the largest preset's weights
_BUCKET = 50_000_000


def check_deepspeed(config: RunConfig, plugin: Any) -> None:
    """
    Raises:
        ValueError: a stage, precision, offloading or config file that the run can't be trained with.
    """
    if plugin.zero_stage not in _STAGES:
        raise ValueError(
            f"DeepSpeed needs `zero_stage` 1 or 2, got {plugin.zero_stage}. Split weights with FSDP, "
            "examples/accelerate_configs/fsdp.yaml."
        )
    if config.mixed_precision == "fp16":
        raise ValueError("With DeepSpeed `mixed_precision` must be no or bf16, got fp16: it scales losses by itself.")
    if plugin.offload_optimizer_device not in (None, "none"):
        raise ValueError(
            f"With DeepSpeed `offload_optimizer_device` must be none, got {plugin.offload_optimizer_device!r}: "
            "DeepSpeed's optimizer for the CPU doesn't skip bad steps."
        )
    decided = [name for name in ("optimizer", "scheduler") if name in plugin.deepspeed_config]
    if decided:
        raise ValueError(
            f"DeepSpeed's config file has {' and '.join(decided)}, which the run makes from its own options: take it "
            "out of the file."
        )


def configure_deepspeed(config: RunConfig, accelerator: Accelerator) -> None:
    """Before `accelerator.prepare`: the run's options into DeepSpeed's."""
    found = accelerator.deepspeed_plugin.deepspeed_config
    found |= {
        "gradient_clipping": config.max_grad_norm,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "train_micro_batch_size_per_gpu": config.batch_size,
        "train_batch_size": config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes,
        # bf16 is autocast's, as everywhere: weights, their gradients and what is sent of them stay float32
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": {
            "enabled": config.mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
    found["zero_optimization"].setdefault("reduce_bucket_size", _BUCKET)


class DeepSpeedUpdate(Update):
    """
    An update whose step the engine takes inside `backward`.

    Losses and latents are checked before it, and bad ones make AdamW skip, as elsewhere. The gradients' norm is known
    only to the engine, which skips the step itself if it isn't finite; the detector then skips the rest.
    """

    def __call__(self, output: ObjectiveOutput, step: int) -> None:
        updating = self.accelerator.sync_gradients
        self.detector.watch(self.watched(output), step)
        if updating:
            self.detector.agree()
        self.backward(output)
        if updating:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)  # only reads it
            self.detector.watch({"gradient norm": torch.tensor(norm, device=self.accelerator.device)}, step)
            self.detector.hold()

    def has_trained(self, part: torch.nn.Module) -> bool:
        return bool(self.optimizer.optimizer.optimizer.state)  # one flat parameter for all

    @property
    def moments(self) -> Any:
        return _WholeMoments(self.optimizer.optimizer, self.parameters, self.accelerator.is_main_process)


class _WholeMoments:
    """
    AdamW as a checkpoint has it, parameter by parameter, of which each process has a flat part. All processes call its
    methods.

    Args:
        zero (`DeepSpeedZeroOptimizer`): what `accelerator.prepare` made of AdamW.
        parameters (`list[nn.Parameter]`): all that it trains, in AdamW's order.
        keep (`bool`): whether this process keeps the moments; otherwise its `state_dict` has none.
    """

    def __init__(self, zero: Any, parameters: list[torch.nn.Parameter], keep: bool):
        self._zero, self._adam, self._keep = zero, zero.optimizer, keep
        (group,) = self._adam.param_groups
        (self._flat,) = group["params"]
        self.param_groups = [group | {"params": parameters}]

    def state_dict(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        (group,) = self.param_groups
        state: dict[int, dict[str, torch.Tensor]] = {}
        for index, parameter in enumerate(group["params"]) if self._adam.state else ():  # none before the first step
            found = {name: safe_get_full_optimizer_state(parameter, name).cpu() for name in _MOMENTS}
            if self._keep:
                state[index] = {"step": self._adam.state[self._flat]["step"].to("cpu", copy=True)} | found
        return {"state": state, "param_groups": [group | {"params": list(range(len(group["params"])))}]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """After the weights were loaded, of which the optimizer's copy is made again."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()
        (group,), state = saved["param_groups"], saved["state"]
        empty = {name: torch.zeros_like(self._flat) for name in _MOMENTS}
        flat = {0: {"step": state[0]["step"]} | empty} if state else {}
        self._adam.load_state_dict({"state": flat, "param_groups": [group | {"params": [0]}]})
        if state:
            self._zero._lazy_init_hp_params_optimizer_state()  # as the first step would; it makes the next lines work
        for index, moments in state.items():
            for name in _MOMENTS:
                value = moments[name].to(self._flat.device)
                safe_set_full_optimizer_state(self.param_groups[0]["params"][index], value, name)
