"""What CONTRIBUTING.md says about adding a sampler: a class and its name, and everything works with it."""

import pytest
import torch
from tiny_models import SKEWED, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.sampling import SOLVERS, Stepper, default_solver, inpaint_latents, sample_latents


class Printed(Stepper):
    """Algorithm 2 as it is printed: the mean of the bridge, without noise."""

    def step(self, i, sample):
        t = self.timesteps[i]
        output = self.predict(i, self.scheduler.scale_model_input(sample, t))
        z_0 = self.scheduler.predict_original_sample(output, t, sample)
        return self.scheduler.bridge_posterior(z_0, sample, t, self.scheduler.previous_timestep(t))[0]


@pytest.fixture
def pipe(monkeypatch) -> DiffusionBridgeVQPipeline:
    monkeypatch.setitem(SOLVERS, "printed", Printed)
    return make_pipeline(classes=3)


@pytest.fixture
def same(pipe) -> DiffusionBridgeVQPipeline:
    """A pipeline whose scheduler draws no noise in its own steps."""
    return DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, OUBridgeScheduler(**SKEWED, variance_type="zero"))


def test_a_new_sampler_generates(pipe, same):
    call = {"num_inference_steps": 5, "class_labels": 1, "guidance_scale": 2.0, "output_type": "latent"}
    expected = same(2, generator=rng(), solver="ancestral", **call).images
    torch.testing.assert_close(pipe(2, generator=rng(), solver="printed", **call).images, expected)


def test_a_new_sampler_completes_images_with_jumps(pipe, same):
    image, mask = torch.rand(1, 3, 6, 6), torch.zeros(6, 6)
    mask[:3] = 1
    call = {"num_inference_steps": 5, "jump_length": 2, "jump_n_sample": 3, "output_type": "latent"}
    found, expected = (
        DiffusionBridgeVQInpaintPipeline(**one.components)(image, mask, generator=rng(), solver=solver, **call).images
        for one, solver in ((pipe, "printed"), (same, "ancestral"))
    )
    torch.testing.assert_close(found, expected)


def test_known_latents_come_back_from_a_new_sampler(pipe):
    known, mask = torch.randn(2, 3, 3, 3), torch.tensor([1.0, 0.0, 0.0])
    labels = torch.tensor([0, 1])
    z_0 = inpaint_latents(pipe.unet, pipe.scheduler, known, mask, 4, class_labels=labels, solver="printed")
    assert torch.equal(z_0[..., 1:], known[..., 1:])


@pytest.mark.parametrize("inpainting", [False, True])
def test_no_solver_means_one_thing_everywhere(pipe, inpainting):
    """DPM-Solver++ to generate and Algorithm 2 to complete, in the functions and in the pipelines."""
    solver = "ancestral" if inpainting else "dpmsolver++"
    assert default_solver(pipe.scheduler, inpainting) == solver
    noise, labels = torch.randn(2, 3, 3, 3), torch.tensor([0, 1])
    if inpainting:
        known, mask = torch.randn(2, 3, 3, 3), torch.tensor([1.0, 0.0, 0.0])
        image, hidden = torch.rand(2, 3, 6, 6), torch.ones(6, 6).tril()
        complete = DiffusionBridgeVQInpaintPipeline(**pipe.components)

        def draw(**kwargs):
            z = inpaint_latents(pipe.unet, pipe.scheduler, known, mask, 4, rng(), class_labels=labels, **kwargs)
            images = complete(
                image, hidden, 4, generator=rng(), class_labels=labels, output_type="latent", **kwargs
            ).images
            return torch.cat([z, images])
    else:

        def draw(**kwargs):
            z = sample_latents(pipe.unet, pipe.scheduler, noise.shape, 4, latents=noise, class_labels=labels, **kwargs)
            images = pipe(2, 4, latents=noise, class_labels=labels, output_type="latent", **kwargs).images
            return torch.cat([z, images])

    assert torch.equal(draw(), draw(solver=solver))
    assert not torch.equal(draw(), draw(solver="ddim"))
