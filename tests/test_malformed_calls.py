"""
Public calls with one argument that is anything: they work, or the package itself says what is wrong, by a ValueError
or TypeError that names the argument. No error from inside of torch, numpy or Pillow.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from few_examples import FEW
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import SKEWED, make_pipeline, rng

import diffusion_bridge_vq
from diffusion_bridge_vq import (
    DenoisingChain,
    DiffusionBridgeVQInpaintPipeline,
    DiffusionBridgeVQPipeline,
    OUBridgeScheduler,
    PixelCNNPrior,
    PixelCNNVQPipeline,
)
from diffusion_bridge_vq.grids import image_grid
from diffusion_bridge_vq.losses import (
    ReconstructionLoss,
    prediction_target,
    prior_loss,
    prior_temperature,
    reconstruction_loss,
    regularization_loss,
    terminal_loss,
)
from diffusion_bridge_vq.models import LatentNormalizer
from diffusion_bridge_vq.sampling import generators_for, inpaint_latents, sample_latents

PACKAGE = str(Path(diffusion_bridge_vq.__file__).parent)
NAN = float("nan")
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 4),
    st.floats(width=32),
    st.sampled_from([1.5, NAN, float("inf"), "cat", "", b"x", 1j, np.int64(2), np.float32(0.5)]),
    st.lists(st.one_of(st.integers(-2, 3), st.text(max_size=2), st.floats(width=16), st.none()), max_size=3),
    st.dictionaries(st.integers(-1, 3), st.text(max_size=2), max_size=3),
    st.sampled_from(
        [
            *(np.zeros((2, 3, 3, 3)), np.array(3), np.array(["a"]), np.zeros((0, 3)), np.zeros((2, 2), dtype=object)),
            *(torch.full((2, 3, 3, 3), NAN), torch.zeros(0, 3, 3, 3), torch.zeros(2, 3, 3, 3, dtype=torch.long)),
            *(torch.tensor(2), torch.tensor([1, 2]), torch.zeros(2, 3, 3, 3, dtype=torch.complex64), torch.zeros(())),
            *(torch.zeros(2, 3, 3, 3, dtype=torch.float64), torch.zeros(2, 1, 3, 3, dtype=torch.bool)),
            *(object(), DDIMScheduler, DDIMScheduler(), OUBridgeScheduler, rng(), [rng()], lambda *_: 3),
        ]
    ),
)


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.5 * x


def run(pipe, *args, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    return pipe(*args, **kwargs)


PIPE = make_pipeline(classes=4)
PLAIN = make_pipeline()
INPAINT = DiffusionBridgeVQInpaintPipeline(**PIPE.components)
PIXELCNN = PixelCNNVQPipeline(
    PIPE.vqvae, PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3, num_class_embeds=4).eval()
)
BRIDGE = OUBridgeScheduler(**SKEWED)
Z = torch.randn(2, 3, 3, 3, generator=rng())
SHORT = {"num_inference_steps": 2, "output_type": "latent"}
CLASSES = {"class_labels": [0, 1], "guidance_scale": 2.0}
CALLBACKS = {"callback_on_step_end": lambda *_: {}, "callback_on_step_end_tensor_inputs": ["latents"]}
LOSS = {"scheduler": BRIDGE, "timesteps": torch.tensor([1, 2])}
MASK = torch.ones(6, 6).tril()

# name: (call, arguments that are right)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "OUBridgeScheduler": (OUBridgeScheduler, dict(SKEWED) | {
        "beta_schedule": "linear", "trained_betas": None, "prediction_type": "sample", "variance_type": "zero",
        "clip_sample": False, "clip_sample_range": 1.0, "timestep_spacing": "leading", "steps_offset": 0,
        "lambda_max_clipped": 2.5,
    }),
    "set_timesteps": (OUBridgeScheduler(**SKEWED).set_timesteps, {"num_inference_steps": 3, "timestep_spacing": None}),
    "set_timesteps, chosen": (OUBridgeScheduler(**SKEWED).set_timesteps, {"timesteps": [9, 5, 1]}),
    "add_noise": (BRIDGE.add_noise, {"original_samples": Z, "noise": Z, "timesteps": 3}),
    "bridge_posterior": (
        BRIDGE.bridge_posterior, {"original_sample": Z, "sample": Z, "timestep": 3, "prev_timestep": 2}
    ),
    "step": (BRIDGE.step, {"model_output": Z, "timestep": 3, "sample": Z, "generator": None}),
    "predict_original_sample": (
        BRIDGE.predict_original_sample, {"model_output": Z, "timestep": 3, "sample": Z}
    ),
    "get_velocity": (BRIDGE.get_velocity, {"sample": Z, "noise": Z, "timesteps": 3}),
    "scale_model_input": (BRIDGE.scale_model_input, {"sample": Z, "timestep": 3}),
    "elbo_weight": (BRIDGE.elbo_weight, {"timesteps": torch.tensor([1, 2])}),
    "signal_to_noise": (BRIDGE.signal_to_noise, {"timesteps": torch.tensor([1, 2])}),
    "terminal_kl": (BRIDGE.terminal_kl, {"original_samples": Z}),
    "previous_timestep": (BRIDGE.previous_timestep, {"timestep": 3}),
    "sample_prior": (BRIDGE.sample_prior, {"shape": (2, 3, 3, 3), "generator": None}),
    "to_diffusers": (BRIDGE.to_diffusers, {"scheduler_class": DDIMScheduler, "timestep_spacing": "leading"}),
    "sample_latents": (lambda **kwargs: sample_latents(Network(), OUBridgeScheduler(**SKEWED), **kwargs), {
        "shape": (2, 3, 3, 3), "num_inference_steps": 2, "generator": None, "latents": None, "class_labels": None,
        "guidance_scale": 1.0, "solver": None, "timestep_spacing": None, "callback": lambda *_: None,
    }),
    "inpaint_latents": (lambda **kwargs: inpaint_latents(Network(), OUBridgeScheduler(**SKEWED), **kwargs), {
        "known_latents": Z, "mask": torch.tensor([1.0, 0.0, 0.0]), "num_inference_steps": 2, "generator": None,
        "latents": None, "class_labels": None, "guidance_scale": 1.0, "jump_length": 1, "jump_n_sample": 2,
        "solver": None, "callback": lambda *_: None,
    }),
    "generate": (lambda **kwargs: run(PIPE, **kwargs), SHORT | CLASSES | CALLBACKS | {
        "batch_size": 2, "generator": None, "latents": None, "solver": None, "timestep_spacing": None,
    }),
    "generate, without classes": (lambda **kwargs: run(PLAIN, **kwargs), SHORT | {
        "batch_size": 2, "class_labels": None, "guidance_scale": 1.0,
    }),
    "complete": (lambda **kwargs: run(INPAINT, **kwargs), SHORT | CLASSES | CALLBACKS | {
        "image": torch.rand(2, 3, 6, 6, generator=rng()), "mask_image": MASK, "num_completions": 1,
        "composite_strength": 0.0, "jump_length": 1, "jump_n_sample": 1, "generator": None, "latents": None,
    }),
    "generate by PixelCNN": (lambda **kwargs: run(PIXELCNN, **kwargs), {
        "batch_size": 2, "generator": None, "output_type": "pt", "class_labels": [0, 1],
    }),
    "decode_latents": (PIPE.decode_latents, {"latents": Z, "output_type": "pt"}),
    "get_label_ids": (PIPE.get_label_ids, {"names": "ship"}),
    "prediction_target": (prediction_target, LOSS | {"latents": Z, "noise": Z}),
    "prior_loss": (prior_loss, LOSS | {"model_output": Z, "latents": Z, "noise": Z, "weighting": "elbo"}),
    "terminal_loss": (terminal_loss, {"scheduler": BRIDGE, "latents": Z}),
    "prior_temperature": (prior_temperature, LOSS),
    "regularization_loss": (
        regularization_loss,
        LOSS | {"quantizer": PIPE.vqvae.quantize, "noisy_latents": Z, "form": "gamma", "temperature": 1.0},
    ),
    "reconstruction_loss": (reconstruction_loss, {"images": Z, "reconstructions": Z, "l1_weight": 0.5}),
    "ReconstructionLoss": (ReconstructionLoss, {
        "channels": 3, "l1_weight": 0.1, "perceptual_weight": 0, "perceptual_features": "lpips",
        "adversarial_weight": 0.1, "adversarial_from": 2,
    }),
    "LatentNormalizer": (LatentNormalizer, {"num_channels": 3, "momentum": 0.1, "eps": 1e-5}),
    "decode_codes": (PIPE.vqvae.decode_codes, {"codes": torch.zeros(2, 3, 3, dtype=torch.long)}),
    "generators_for": (generators_for, {"seed": 0, "numbers": [0, 1]}),
    "image_grid": (image_grid, {"images": [Image.new("L", (4, 4))] * 3, "columns": 2, "tile_size": 8}),
    "DenoisingChain": (DenoisingChain, {"steps": [0], "output_type": "pt"}),
    "DiffusionBridgeVQPipeline": (lambda **kwargs: DiffusionBridgeVQPipeline(**PIPE.components, **kwargs), {
        "id2label": None, "default_guidance_scale": 1.0, "default_num_inference_steps": 3,
    }),
}  # fmt: skip


def check(call: Callable[..., Any], arguments: dict[str, Any]) -> None:
    try:
        call(**arguments)
    except (ValueError, TypeError) as error:
        origin = traceback.extract_tb(error.__traceback__)[-1]
        assert origin.filename.startswith(PACKAGE), f"raised in {origin.filename}:{origin.lineno}: {error}"
        assert len(str(error)) > 20


@pytest.mark.parametrize("name", CALLS)
def test_right_arguments_are_taken(name):
    call, arguments = CALLS[name]
    if name != "get_label_ids":  # of a pipeline without names
        call(**arguments)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]
)
@FEW
@given(junk=JUNK)
def test_anything_works_or_is_refused_by_name(name, argument, junk):
    call, arguments = CALLS[name]
    check(call, arguments | {argument: junk})
