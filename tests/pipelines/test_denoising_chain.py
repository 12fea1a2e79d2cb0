"""DenoisingChain against the latents that callbacks see, decoded here."""

import re

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)
from inpainting_calls import make, run
from tiny_models import STEPS, rng

from diffusion_bridge_vq import DenoisingChain, DiffusionBridgeVQPipeline


@pytest.mark.parametrize("cls", [None, DDIMScheduler])
def test_chain_shows_the_latents_of_the_steps(cls):
    """Nearest codes by brute force, then the decoder; for a stock scheduler at z* + x."""
    pipe, seen = make(), []
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    shift = 0.0 if cls is None else torch.tensor([0.3, -0.2, 0.5]).reshape(1, 3, 1, 1)

    def keep(_, step, timestep, kwargs):
        seen.append(kwargs["latents"] + shift)
        return {}

    unconditional = DiffusionBridgeVQPipeline(**pipe.components)
    unconditional.set_progress_bar_config(disable=True)
    for call in (
        lambda callback: run(pipe, callback_on_step_end=callback),
        lambda callback: (
            unconditional(
                batch_size=2,
                num_inference_steps=STEPS,
                generator=rng(),
                output_type="pt",
                callback_on_step_end=callback,
            ).images
        ),
    ):
        seen.clear()
        expected = call(keep)
        chain = DenoisingChain([2, 0, -1], output_type="pt")
        assert torch.equal(call(chain), expected)  # looking changes nothing
        assert len(chain.images) == 3
        codebook = pipe.vqvae.quantize.embedding.weight
        for images, step in zip(chain.images, (2, 0, 3), strict=True):
            rows = seen[step].movedim(1, -1)[..., None, :]
            z_q = codebook[(rows - codebook).square().sum(-1).argmin(-1)].movedim(-1, 1).contiguous()
            with torch.no_grad():
                decoded = pipe.vqvae.decoder(pipe.vqvae.post_quant_conv(z_q))
            torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
        assert torch.equal(chain.images[2], expected)
        assert not torch.equal(chain.images[0], chain.images[1])


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "cls", [EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, LMSDiscreteScheduler]
)
def test_chain_of_schedulers_that_work_in_other_coordinates(cls, times):
    """Their sample is x_0 + sigma eps; z_t is z* plus what the network sees next."""
    pipe, seen = make(), []
    pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    z_star = torch.tensor([0.3, -0.2, 0.5]).reshape(1, 3, 1, 1)
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., :3, :3] + z_star))
    chain = DenoisingChain([0, 1, -1], output_type="latent")
    options = {"jump_length": STEPS, "jump_n_sample": times, "callback_on_step_end": chain}
    z_0 = run(pipe, output_type="latent", **options)
    last_walk = seen[-pipe.num_timesteps :]
    for latents, expected in zip(chain.images, (last_walk[1], last_walk[2], z_0), strict=True):
        torch.testing.assert_close(latents, expected)


def test_chain_of_a_walk_with_jumps_keeps_the_last_walk():
    pipe = make()
    chain = DenoisingChain([-1], output_type="pt")
    images = run(pipe, jump_length=2, jump_n_sample=3, callback_on_step_end=chain)
    assert len(chain.images) == 1 and torch.equal(chain.images[0], images)


def test_chain_begins_anew_with_each_call():
    pipe, chain = make(), DenoisingChain([0, -1], output_type="pt")

    def stop(called, *args):
        called._interrupt = True
        return chain(called, *args)

    run(pipe, callback_on_step_end=chain)
    stopped = run(pipe, seed=1, callback_on_step_end=stop)
    assert len(chain.images) == 1 and torch.equal(chain.images[0], stopped)


@pytest.mark.parametrize(
    ("number", "cls", "steps"),
    [(1, None, [0]), (3, None, [0, 2, 3]), (9, None, [0, 1, 2, 3]), (3, HeunDiscreteScheduler, [0, 3, 6])],
)
def test_chain_of_a_number_of_steps(number, cls, steps):
    """From the first to the last of those that there are, which Heun has 7 of when it is asked for 4."""
    pipe = make()
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    chain = DenoisingChain(number, output_type="pt")
    images = run(pipe, callback_on_step_end=chain)
    assert chain.image_steps == steps and len(chain.images) == len(steps)
    named = DenoisingChain(steps, output_type="pt")
    run(pipe, callback_on_step_end=named)
    assert torch.equal(torch.stack(chain.images), torch.stack(named.images))
    assert number == 1 or torch.equal(chain.images[-1], images)


def test_chain_refuses_steps_that_there_are_not():
    for steps in ([], 0):
        with pytest.raises(ValueError, match=rf"not empty, or how many, got {re.escape(str(steps))}"):
            DenoisingChain(steps)
    for steps in ([STEPS], [0, -STEPS - 1]):
        with pytest.raises(ValueError, match=r"must lie in -4\.\.3"):
            run(make(), callback_on_step_end=DenoisingChain(steps))
