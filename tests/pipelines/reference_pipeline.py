"""A short call of the pipeline, and its network and its decoding by hand."""

import torch
from diffusers import UNet2DModel
from tiny_models import STEPS, rng

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel


def run(pipe: DiffusionBridgeVQPipeline, seed: int | None = 0, **kwargs):
    kwargs = {"batch_size": 2, "num_inference_steps": STEPS, "output_type": "pt"} | kwargs
    return pipe(**kwargs if seed is None else {"generator": rng(seed)} | kwargs).images


@torch.no_grad()
def predict(unet: UNet2DModel, x: torch.Tensor, t: int, **kwargs) -> torch.Tensor:
    """The network on a 3 x 3 grid, put into the corner of a 4 x 4 one."""
    padded = torch.zeros(len(x), 3, 4, 4)
    padded[..., :3, :3] = x
    return unet(padded, torch.tensor(t), **kwargs).sample[..., :3, :3]


@torch.no_grad()
def decode(vqvae: GumbelVQModel, z_0: torch.Tensor) -> torch.Tensor:
    """Nearest codes by brute force, decoder, pixels in [0, 1]."""
    e = vqvae.quantize.embedding.weight.double()
    rows = z_0.double().movedim(1, -1)[..., None, :]
    z_q = e[(rows - e).square().sum(-1).argmin(-1)].float().movedim(-1, 1).contiguous()
    return (vqvae.decoder(vqvae.post_quant_conv(z_q)) / 2 + 0.5).clamp(0, 1)
