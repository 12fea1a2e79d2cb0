"""A pipeline's networks as ONNX graphs, for programs without torch."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from .models import GumbelVQModel, refuse_image_condition
from .models.denoiser import call_network
from .pipelines.bridge import BridgePipeline

_EXAMPLES = 2  # images in the example inputs: 1 would be taken for a constant


def export_onnx(pipe: BridgePipeline, folder: str | os.PathLike) -> list[Path]:
    """
    Write all that sampling needs without torch: three graphs, with any number of images B, and the scheduler's config.

    | file | inputs | output |
    |---|---|---|
    | denoiser.onnx | `sample` (B, d, h, w), `timestep` (B,) int64, `class_labels` (B,) int64 if the model has classes | `prediction` (B, d, h, w) |
    | quantizer.onnx | `latents` (B, d, h, w): z_0 | `codes` (B, h, w) int64, the nearest |
    | decoder.onnx | `codes` (B, h, w) int64 | `pixels` (B, C, H, W), about [-1, 1] |

    `sample` isn't z_t but what the network sees: x_t = (z_t - z*) / m_t, m_t^2 = abar_t + s^2 (1 - abar_t), of unit
    variance. `timestep` is i = t - 1. `prediction` is eps, z_0 or v by `prediction_type` in scheduler_config.json,
    which has theta, eta, z* and the betas (or the schedule that they come from) too. The last class is the null class
    of guidance. Where classes are words, `class_labels` (B, K + 1) in float32 has a 1 for each word, by the numbers of
    `pipe.id2label`, or for the null class. Grids that the U-Net can't halve are padded and cropped inside. Weights
    are in the graph's file; above 1.5 GiB in a second file, FILE.data.

    Args:
        pipe ([`DiffusionBridgeVQPipeline`] or [`DiffusionBridgeVQInpaintPipeline`]): in float32.
        folder (`str` or `os.PathLike`): made if there is none; files of these names are replaced.

    Returns:
        `list[Path]`: the three graphs.

    Raises:
        ImportError: `onnx` or `onnxscript` is missing; names the extra.
        ValueError: another kind of pipeline, or networks that aren't in float32.
    """  # noqa: E501 (a table)
    if not isinstance(pipe, BridgePipeline):
        raise ValueError(f"Only a pipeline with a U-Net can be exported, got {type(pipe).__name__}.")
    refuse_image_condition(pipe.unet, "the export to ONNX doesn't take")
    for name, model in (("unet", pipe.unet), ("vqvae", pipe.vqvae)):
        if model.dtype != torch.float32:
            raise ValueError(f"`{name}` is in {model.dtype}; export it in float32: `pipe.to(torch.float32)`.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('ONNX needs the extra `onnx` (`pip install -e ".[onnx]"` in the repository).') from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = pipe.device
    grid = (_EXAMPLES, *pipe._latent_size())
    latents = torch.zeros(_EXAMPLES, pipe.unet.config.in_channels, *grid[1:], device=device)
    integers = torch.zeros(_EXAMPLES, dtype=torch.long, device=device)
    inputs = {"sample": latents, "timestep": integers}
    if pipe.unet.config.num_class_embeds is not None:
        vectors = latents.new_zeros(_EXAMPLES, pipe.unet.config.num_class_embeds)
        # a tensor of its own: one that is two inputs becomes one input of the graph
        inputs["class_labels"] = vectors if pipe.config.get("label_words") else integers.clone()
    codes = torch.zeros(grid, dtype=torch.long, device=device)
    pipe.scheduler.save_pretrained(folder)
    return [
        _export(_Denoiser(pipe.unet), inputs, "prediction", folder / "denoiser.onnx"),
        _export(_Quantizer(pipe.vqvae), {"latents": latents}, "codes", folder / "quantizer.onnx"),
        _export(_Decoder(pipe.vqvae), {"codes": codes}, "pixels", folder / "decoder.onnx"),
    ]


def _export(network: nn.Module, inputs: dict[str, torch.Tensor], output: str, path: Path) -> Path:
    """One graph; `network` is exported in evaluation mode and given back as it was."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # comes with onnxscript

    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        program: Any = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC if i else "batch"} for i in range(len(inputs))),
            verbose=False,
        )
    finally:
        for module in training:
            module.training = True
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with paths of this machine
    program.save(path)
    return path


class _Denoiser(nn.Module):
    """x_t of unit variance -> prediction, padded and cropped."""

    def __init__(self, unet: UNet2DModel):
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        return call_network(self.unet, sample, timestep, class_labels)


class _Quantizer(nn.Module):
    """z_0 -> nearest codes; `encode_codes` goes block by block, in numbers of blocks that a graph can't have."""

    def __init__(self, vqvae: GumbelVQModel):
        super().__init__()
        self.quantize = vqvae.quantize

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.quantize.logits(latents).argmax(dim=-1)


class _Decoder(nn.Module):
    """Codes -> z_q -> pixels."""

    def __init__(self, vqvae: GumbelVQModel):
        super().__init__()
        self.vqvae: Any = vqvae

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        shape = (*codes.shape, self.vqvae.quantize.vq_embed_dim)
        return self.vqvae.decode(codes, force_not_quantize=True, shape=shape).sample
