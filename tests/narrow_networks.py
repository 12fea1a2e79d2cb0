"""Networks of presets and checkpoints, as deep as they are but narrow, for tests that are about something else."""

from typing import Any

from diffusion_bridge_vq.training import PRESETS


def narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a network, for one as deep with 8 channels."""
    if "block_out_channels" in settings:
        widths = [8] * len(settings["block_out_channels"])
        heads = {"attention_head_dim": 8} if "attention_head_dim" in settings else {}
        return settings | heads | {"block_out_channels": widths, "norm_num_groups": 4}
    return settings | {name: value for name, value in (("width", 8), ("num_layers", 2)) if name in settings}


def narrow_presets() -> None:
    """In this process, presets have narrow networks from now on."""
    for preset in PRESETS.values():
        for settings in preset.values():
            for name in settings.keys() & {"vqvae", "unet", "prior"}:
                settings[name] = narrow(settings[name])
