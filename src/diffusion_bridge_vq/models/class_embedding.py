"""Other classes for a trained U-Net, without another law for those that it keeps."""

from collections.abc import Mapping

import torch
from diffusers import UNet2DModel
from torch import nn


@torch.no_grad()
def replace_classes(unet: UNet2DModel, num_classes: int | None, kept: Mapping[int, int] | None = None) -> None:
    """
    Give a trained U-Net other classes, in place. For classes that it keeps, and for the null class, what it predicts
    stays the same, as does what a network without classes predicts, which becomes its null class. The row of a new
    class is drawn as in a fresh table: rows that all start as the null class's would take long to become different.

    Args:
        unet (`UNet2DModel`): with or without a table of classes, the last of which is the null class.
        num_classes (`int`, *optional*): without the null class; without it the network loses its classes and goes on
            as its null class.
        kept (`Mapping[int, int]`, *optional*): number of a new class -> number of the old one that it keeps.

    Raises:
        ValueError: its class embedding isn't a table.
    """
    if unet.config.class_embed_type is not None:
        raise ValueError(
            f"The U-Net has `class_embed_type` {unet.config.class_embed_type!r}, expected a table of classes "
            "(`num_class_embeds`) or none."
        )
    bias = unet.time_embedding.linear_2.bias  # what the class embedding is added to
    old = unet.class_embedding
    if num_classes is None:
        if old is not None:
            bias += old.weight[-1]
        unet.class_embedding = None
        unet.register_to_config(num_class_embeds=None)
        return
    null = torch.zeros_like(bias) if old is None else old.weight[-1]
    table = torch.randn(num_classes + 1, len(bias), device=bias.device).to(bias.dtype)
    table[-1] = null
    for new, known in (kept or {}).items():
        table[new] = old.weight[known]
    unet.class_embedding = nn.Embedding.from_pretrained(table, freeze=False)
    unet.register_to_config(num_class_embeds=num_classes + 1)
