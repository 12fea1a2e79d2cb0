"""Number formats for a CPU, in the section "samplers" of benchmark.py."""

from copy import deepcopy

import torch
from torch.ao.quantization import quantize_dynamic

from diffusion_bridge_vq import DiffusionBridgeVQPipeline


def in_other_formats(pipe: DiffusionBridgeVQPipeline) -> dict[str, DiffusionBridgeVQPipeline]:
    """
    Copies of a float32 bridge in the channels-last layout, in bfloat16, and with the linear layers of its U-Net (those
    of attention and of the timesteps) in int8, activations quantized call by call. PyTorch's own tools have no
    convolutions of that kind.
    """
    vqvae, unet = deepcopy(pipe.vqvae), deepcopy(pipe.unet)
    last = [deepcopy(module).to(memory_format=torch.channels_last) for module in (vqvae, unet)]
    return {
        "bridge, channels last": DiffusionBridgeVQPipeline(*last, pipe.scheduler),
        "bridge, bfloat16": DiffusionBridgeVQPipeline(
            vqvae.type(torch.bfloat16), unet.type(torch.bfloat16), pipe.scheduler
        ),
        "bridge, linear layers int8": DiffusionBridgeVQPipeline(
            pipe.vqvae, quantize_dynamic(pipe.unet, {torch.nn.Linear}, dtype=torch.qint8), pipe.scheduler
        ),
    }


def same_codes(pipe: DiffusionBridgeVQPipeline, other: DiffusionBridgeVQPipeline, steps: int, n: int = 64) -> float:
    """Share of codes in which two bridges agree when they draw `n` images from the same noise without adding any."""
    channels, size = pipe.unet.config.in_channels, pipe._latent_size()
    noise = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(0))
    codes = [
        each.vqvae.encode_codes(each(n, steps, latents=noise, solver="dpmsolver++", output_type="latent").images)
        for each in (pipe, other)
    ]
    return (codes[0] == codes[1]).double().mean().item()
