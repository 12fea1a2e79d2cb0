"""The blocks of a modular pipeline draw what the pipeline draws, and guiders of diffusers work with them."""

import copy
import math

import pytest
import torch
from diffusers import ClassifierFreeGuidance, HeunDiscreteScheduler, KDPM2DiscreteScheduler
from tiny_models import SKEWED, make_pipeline, rng

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.pipelines.modular_blocks import BridgeDecodeStep, BridgeDenoiseStep, DiffusionBridgeVQBlocks


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(4, size=4, **SKEWED)


def modular(pipe, blocks=None):
    made = (blocks or DiffusionBridgeVQBlocks()).init_pipeline()
    parts = {"unet": pipe.unet, "scheduler": pipe.scheduler, "vqvae": pipe.vqvae}
    made.update_components(**{name: part for name, part in parts.items() if name in made._component_specs})
    return made


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_without_classes_they_are_the_pipeline(pipe, output_type):
    call = {"batch_size": 2, "num_inference_steps": 3, "output_type": output_type}
    assert torch.equal(modular(pipe)(**call, generator=rng(), output="images"), pipe(**call, generator=rng()).images)


@pytest.mark.parametrize("labels", [None, 2, [0, 2]])
def test_there_are_as_many_images_as_labels(pipe, labels):
    call = {"num_inference_steps": 2, "class_labels": labels}
    found = modular(pipe)(**call, generator=rng(), output="latents")
    expected = pipe(**call, generator=rng(), output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("stock", [None, HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_a_guider_is_guidance(pipe, scale, stock):
    """To the end, also of schedulers that take more steps than they are asked for."""
    scheduler = pipe.scheduler if stock is None else pipe.scheduler.to_diffusers(stock)
    same, made = type(pipe)(**pipe.components | {"scheduler": scheduler}), modular(pipe)
    same.set_progress_bar_config(disable=True)
    made.update_components(scheduler=scheduler, guider=ClassifierFreeGuidance(guidance_scale=scale))
    call = {"batch_size": 2, "num_inference_steps": 4, "class_labels": [0, 2], "generator": rng()}
    found = made(**call, output="latents")
    expected = same(2, 4, rng(), "latent", class_labels=[0, 2], guidance_scale=scale).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_student_has_the_guidance_that_it_learned(pipe):
    student = {"few_step_timesteps": {1: [19], 2: [19, 9]}, "distilled_guidance_scale": 2.0}
    scheduler = OUBridgeScheduler.from_config(pipe.scheduler.config, prediction_type="sample", **student)
    made = modular(pipe)
    made.update_components(scheduler=scheduler, guider=ClassifierFreeGuidance(guidance_scale=2.0))
    call = {"batch_size": 2, "num_inference_steps": 2, "class_labels": [0, 2]}
    found = made(**call, generator=rng(), output="latents")
    own = type(pipe)(**pipe.components | {"scheduler": scheduler})
    own.set_progress_bar_config(disable=True)
    assert torch.equal(found, own(**call, generator=rng(), output_type="latent").images)
    made.update_components(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    with pytest.raises(ValueError, match="knows no other: leave out `guidance_scale`"):
        made(**call, output="latents")


def test_guidance_can_end_early(pipe):
    """Which the pipeline alone can't: a guider that stops before the first step changes nothing."""
    made = modular(pipe)
    call = {"batch_size": 2, "num_inference_steps": 4, "class_labels": [0, 2], "output": "latents"}
    plain, drawn = made(**call, generator=rng()), {}
    for stop in (0.0, 0.5, 1.0):
        made.update_components(guider=ClassifierFreeGuidance(guidance_scale=4.0, stop=stop))
        drawn[stop] = made(**call, generator=rng())
    assert torch.equal(drawn[0.0], plain)
    assert not torch.equal(drawn[0.5], plain) and not torch.equal(drawn[0.5], drawn[1.0])


def test_one_block_alone(pipe):
    latents = modular(pipe, BridgeDenoiseStep())(
        batch_size=1, num_inference_steps=2, generator=rng(), output="latents"
    )
    assert torch.equal(latents, pipe(1, 2, rng(), "latent").images)


def without_size(made):
    made.unet.register_to_config(sample_size=None)


def with_nan(made):
    with torch.no_grad():
        made.unet.conv_out.bias.fill_(math.nan)


@pytest.mark.parametrize(
    ("change", "call", "message"),
    [
        (with_nan, {}, "Sampling gave latents that are NaN or infinite"),
        (without_size, {}, r"set it by `unet\.register_to_config\(sample_size=\.\.\.\)`"),
        (None, {"output_type": "foo"}, "must be pil, np, pt or latent, got 'foo'"),
        (None, {"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        (None, {"batch_size": 3, "class_labels": [0, 2]}, "must be 3 integers or one"),
    ],
)
def test_what_the_pipeline_refuses(pipe, change, call, message):
    made = modular(pipe)
    if change is not None:
        made.update_components(unet=copy.deepcopy(pipe.unet))
        change(made)
    with pytest.raises(ValueError, match=message):
        made(**{"num_inference_steps": 2} | call, output="images")


def test_latents_to_decode_are_checked(pipe):
    with pytest.raises(ValueError, match="`latents` has 48 of 48 values that are NaN"):
        modular(pipe, BridgeDecodeStep())(latents=torch.full((1, 3, 4, 4), math.nan), output="images")
