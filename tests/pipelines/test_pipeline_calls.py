"""What all pipelines make of their calls' arguments, and of a callback that stops them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import STEPS, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, PixelCNNPrior, PixelCNNVQPipeline


def make_calls(pipe) -> dict:
    """A call of each kind of pipeline with `pipe`'s components, for two images as tensors."""
    inpaint = DiffusionBridgeVQInpaintPipeline(**pipe.components)
    pixelcnn = PixelCNNVQPipeline(
        pipe.vqvae, PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3).eval()
    )
    for other in (inpaint, pixelcnn):
        other.set_progress_bar_config(disable=True)
    mask = torch.zeros(6, 6)
    mask[:, 2:] = 1

    def complete(**kwargs):
        return inpaint(torch.full((2, 3, 6, 6), 0.7), mask, **kwargs)

    def steps(call):
        return lambda **kwargs: call(**{"num_inference_steps": STEPS, "output_type": "pt"} | kwargs).images

    return {
        "generate": steps(lambda **kwargs: pipe(**{"batch_size": 2} | kwargs)),
        "inpaint": steps(complete),
        "pixelcnn": lambda **kwargs: pixelcnn(**{"batch_size": 2, "output_type": "pt"} | kwargs).images,
    }


@pytest.mark.parametrize(
    ("kinds", "change", "message"),
    [
        ("generate inpaint pixelcnn", {"generator": 0}, r"torch\.Generator or a list of them, got 0; a seed becomes"),
        ("generate inpaint pixelcnn", {"generator": (rng(0), rng(1))}, r"or a list of them, got \("),
        ("generate inpaint pixelcnn", {"generator": [rng(0), 1]}, "or a list of them, got"),
        ("generate inpaint", {"num_inference_steps": "4"}, "`num_inference_steps` must be a whole number .* got '4'"),
        ("generate inpaint", {"num_inference_steps": 4.0}, r"`num_inference_steps` must be a whole .* got 4\.0"),
        ("generate inpaint", {"num_inference_steps": 0}, r"`num_inference_steps` must be .* in 1\.\.20, got 0"),
        ("generate pixelcnn", {"batch_size": 2.0}, r"`batch_size` must be a whole number .* got 2\.0"),
        ("inpaint", {"num_completions": 1.5}, r"`num_completions` must be a whole number .* got 1\.5"),
        ("inpaint", {"jump_n_sample": 1.5}, r"`jump_n_sample` must be a whole number .* got 1\.5"),
    ],
)
def test_arguments_of_a_wrong_type(kinds, change, message):
    calls = make_calls(make_pipeline())
    for kind in kinds.split():
        with pytest.raises(ValueError, match=message):
            calls[kind](**change)


def test_whole_numbers_of_numpy():
    call = make_calls(make_pipeline())["generate"]
    images = call(batch_size=np.int64(2), num_inference_steps=np.int32(STEPS), generator=rng())
    assert torch.equal(images, call(generator=rng()))


@pytest.mark.parametrize("stock", [None, DDIMScheduler])
@pytest.mark.parametrize("kind", ["generate", "inpaint"])
def test_a_callback_stops_the_call(kind, stock):
    """No network call follows, what is returned is what the callback saw last, and the next call is whole again."""
    pipe = make_pipeline(z_star=0.0, num_train_timesteps=20)
    if stock is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(stock)
    call = make_calls(pipe)[kind]
    whole, seen, networks = call(generator=rng(), output_type="latent"), [], []
    pipe.unet.register_forward_hook(lambda *_: networks.append(1))

    def stop(called, step, timestep, kwargs):
        seen.append(kwargs["latents"])
        called._interrupt = step == 1
        assert called.interrupt == (step == 1)
        return {}

    stopped = call(generator=rng(), output_type="latent", callback_on_step_end=stop)
    assert len(seen) == len(networks) == 2
    assert torch.equal(stopped, seen[1]) and not torch.equal(stopped, whole)
    assert call(generator=rng(), callback_on_step_end=stop).shape == (2, 3, 6, 6)  # as images, too
    assert torch.equal(call(generator=rng(), output_type="latent"), whole)
