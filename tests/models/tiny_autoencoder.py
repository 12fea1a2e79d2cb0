"""Autoencoders of a few thousand weights, and images for them."""

import torch

from diffusion_bridge_vq.models import GumbelVQModel

SMALL = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "num_vq_embeddings": 16,
    "sample_size": 16,
    "mid_block_add_attention": False,
}


def make(**kwargs) -> GumbelVQModel:
    return GumbelVQModel(**SMALL | kwargs)


def moved(model: GumbelVQModel) -> GumbelVQModel:
    """The model with the running statistics of a batch, so that latents lie among the codes; in eval."""
    momentum, model.normalizer.momentum = model.normalizer.momentum, 1.0
    with torch.no_grad():
        model.train().encode(images(model.config, 16))
    model.normalizer.momentum = momentum
    assert (model.normalizer.running_var < 0.5).all()  # far from its start, 1
    return model.eval()


def images(config: dict = SMALL, batch: int = 2) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1]."""
    size = config["sample_size"]
    return torch.rand(batch, config.get("in_channels", 3), size, size) * 2 - 1
