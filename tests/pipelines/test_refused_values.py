"""Values that drew plausible images, or failed inside of a layer, and are refused by name."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SKEWED, STEPS, make_code_pipeline, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, OUBridgeScheduler
from diffusion_bridge_vq.sampling import inpaint_latents, sample_latents

NOISE = torch.randn(2, 3, 3, 3, generator=rng())
NAN = float("nan")


def generate(pipe, **kwargs):
    return pipe(**{"batch_size": 2, "num_inference_steps": STEPS, "output_type": "pt"} | kwargs).images


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"latents": NOISE.numpy()}, TypeError, r"`latents` must be a torch.Tensor, got ndarray.*from_numpy"),
        ({"latents": NOISE.clone().index_fill_(0, torch.tensor(1), NAN)}, ValueError, "27 of 54 values that are NaN"),
        ({"latents": NOISE.long()}, ValueError, r"floating-point numbers, got torch.int64: use `latents.float\(\)`"),
        ({"guidance_scale": NAN, "class_labels": 0}, ValueError, "`guidance_scale` must be a finite number, got nan"),
        ({"guidance_scale": "2", "class_labels": 0}, ValueError, "`guidance_scale` must be a finite number, got '2'"),
        ({"class_labels": "cat"}, ValueError, "has no class names, got 'cat'"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, ValueError, "must be a list with names .* got 'latents'"),
        ({"callback_on_step_end": lambda p, i, t, k: k["latents"]}, TypeError, "must return a dict.*got Tensor"),
        ({"callback_on_step_end": 5}, TypeError, "must be a function of .* got int"),
        ({"callback_on_step_end": lambda p, i, t, k: {"latents": 3}}, TypeError, "as a torch.Tensor.*got int"),
        ({"callback_on_step_end": lambda p, i, t, k: {"latents": NOISE[:1]}}, ValueError, "latents of shape"),
        (
            {"callback_on_step_end": lambda p, i, t, k: k | {"mask": 1}},
            ValueError,
            "returned mask, which is not used",
        ),
        ({"batch_size": True}, ValueError, "`batch_size` must be a whole number"),
    ],
)
def test_refused(change, error, message):
    with pytest.raises(error, match=message):
        generate(make_pipeline(classes=4), **change)


def test_latents_of_a_callback_take_the_precision_of_the_samples():
    pipe = make_pipeline()
    expected = generate(pipe, latents=NOISE)
    double = generate(pipe, latents=NOISE, callback_on_step_end=lambda p, i, t, k: {"latents": k["latents"].double()})
    assert torch.equal(double, expected)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_network_that_gives_nan_draws_nothing(value):
    pipe = make_pipeline()
    inpaint = DiffusionBridgeVQInpaintPipeline(**pipe.components)
    with torch.no_grad():  # after both were made, which looks at the weights
        pipe.unet.conv_out.bias.fill_(value)
    for call in (
        lambda: generate(pipe),
        lambda: inpaint(torch.rand(1, 3, 6, 6), torch.ones(6, 6), num_inference_steps=STEPS),
        lambda: pipe.decode_latents(NOISE * value, "pt"),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call()


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.5 * x


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (2, 3, 0), (2, 3), 5, (2.0, 3, 3), ()])
def test_empty_batches_and_shapes_that_are_none(shape):
    with pytest.raises(ValueError, match="`shape` must be"):
        sample_latents(Network(), OUBridgeScheduler(**SKEWED), shape, 2)


@pytest.mark.parametrize(
    "known", [NOISE[:0], NOISE * NAN, NOISE.long(), NOISE[0, 0]], ids=["empty", "nan", "integers", "no batch"]
)
def test_known_latents_that_are_none(known):
    with pytest.raises(ValueError, match="`known_latents`"):
        inpaint_latents(Network(), OUBridgeScheduler(**SKEWED), known, torch.tensor([1.0, 0.0, 0.0]), 2)


def test_nan_where_nothing_is_known_is_ignored():
    known = torch.where(torch.tensor([True, False, False]), NAN, NOISE)
    z = inpaint_latents(Network(), OUBridgeScheduler(**SKEWED), known, torch.tensor([1.0, 0.0, 0.0]), 2)
    assert z.isfinite().all()


def test_guidance_without_classes_is_not_ignored():
    with pytest.raises(ValueError, match="needs `class_labels`"):
        sample_latents(Network(), OUBridgeScheduler(**SKEWED), (2, 3, 3), 2, guidance_scale=3.0)


def test_a_swapped_scheduler_of_other_noise_levels_is_refused():
    """Of a network that knows its noise levels; when a pipeline is made, the same is refused."""
    pipe = make_code_pipeline()
    pipe.scheduler = OUBridgeScheduler(**SKEWED | {"num_train_timesteps": 30}, prediction_type="sample")
    with pytest.raises(ValueError, match="num_noise_levels"):
        generate(pipe)
    pipe.scheduler = pipe.scheduler.to_diffusers(DDIMScheduler)
    with pytest.raises(ValueError, match="num_noise_levels"):
        generate(pipe)
