"""The latents of the pipeline against loops by hand, diffusers' DDPMPipeline and stock schedulers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from reference_pipeline import predict, run
from tiny_models import BRIDGE, SKEWED, STEPS, make_pipeline, rng


@pytest.mark.parametrize("steps", [STEPS, 20])
def test_latents_are_those_of_diffusers_ddpm_pipeline(steps):
    """theta = 1, eta = sqrt(2), z* = 0, on a grid that the U-Net takes as it is (clipped, as pixels)."""
    pipe = make_pipeline(size=4, **BRIDGE)
    stock = DDPMPipeline(pipe.unet, DDPMScheduler(**BRIDGE, clip_sample=False))
    stock.set_progress_bar_config(disable=True)
    expected = stock(batch_size=2, generator=rng(7), num_inference_steps=steps, output_type="np").images
    z_0 = run(pipe, seed=7, solver="ancestral", num_inference_steps=steps, output_type="latent")
    clipped = (z_0 / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
    assert ((clipped > 0) & (clipped < 1)).mean() > 0.1
    np.testing.assert_allclose(clipped, expected, atol=1e-4)


def test_the_bridge_written_out():
    """theta, eta, z* away from DDPM's: the bridge of eq. 3 in z, the network in (z - z*) / m_t."""
    pipe = make_pipeline()
    s2, z_star = 1.2**2 / (2 * 2.0), torch.tensor([0.3, -0.2, 0.5]).reshape(1, 3, 1, 1)
    abar = [1.0]
    for i in range(20):
        abar.append(abar[-1] * (1 - (0.01 + i * 0.29 / 19)))
    g = rng(7)
    z = z_star + math.sqrt(s2) * torch.randn(2, 3, 3, 3, generator=g)
    for t, prev in ((15, 10), (10, 5), (5, 0), (0, -1)):
        now, then = abar[t + 1], abar[prev + 1]
        m = math.sqrt(now + s2 * (1 - now))
        eps = predict(pipe.unet, (z - z_star) / m, t)
        x_0 = (z - z_star - math.sqrt(s2 * (1 - now)) * eps) / math.sqrt(now)
        a = now / then
        z = z_star + (math.sqrt(then) * (1 - a) * x_0 + math.sqrt(a) * (1 - then) * (z - z_star)) / (1 - now)
        if prev >= 0:
            z = z + math.sqrt(s2 * (1 - then) * (1 - a) / (1 - now)) * torch.randn(2, 3, 3, 3, generator=g)
    z_0 = run(pipe, seed=7, solver="ancestral", output_type="latent")
    torch.testing.assert_close(z_0, z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("z_star", [0.0, [0.3, -0.2, 0.5]])
def test_swapped_schedulers(z_star):
    """With s = 1 `from_config` does what `to_diffusers` does; DDIM is eta = 0 of Song et al. 2021, written out."""
    pipe = make_pipeline(**BRIDGE, theta=0.5, eta=1.0, z_star=z_star, timestep_spacing="trailing")
    bridge = pipe.scheduler
    noise, results = torch.randn(2, 3, 3, 3), {}
    for cls in (DDIMScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = cls.from_config(bridge.config)
        results[cls] = run(pipe, latents=noise, output_type="latent")
        pipe.scheduler = bridge.to_diffusers(cls)
        assert type(pipe.scheduler) is cls
        torch.testing.assert_close(run(pipe, latents=noise, output_type="latent"), results[cls], atol=1e-4, rtol=1e-4)
    assert (results[DDIMScheduler] - results[DPMSolverMultistepScheduler]).abs().max() > 1e-3

    abar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.01, 0.3, 20))])
    x = noise
    for t, prev in ((19, 14), (14, 9), (9, 4), (4, -1)):
        eps = predict(pipe.unet, x, t)
        x_0 = (x - math.sqrt(1 - abar[t + 1]) * eps) / math.sqrt(abar[t + 1])
        x = math.sqrt(abar[prev + 1]) * x_0 + math.sqrt(1 - abar[prev + 1]) * eps
    shift = torch.tensor(z_star).reshape(1, -1, 1, 1)
    torch.testing.assert_close(results[DDIMScheduler], x + shift, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("solver", "spacing", "cls"),
    [("dpmsolver++", None, DPMSolverMultistepScheduler), ("ddim", "leading", DDIMScheduler)],
)
def test_solvers_are_the_stock_schedulers(prediction_type, solver, spacing, cls):
    """Step by step, with theta, eta and z* away from DDPM's: z_t = z* + m_t x_t. Stock DDIM knows even steps only."""
    pipe, noise, seen = make_pipeline(**SKEWED, prediction_type=prediction_type), torch.randn(2, 3, 3, 3), []
    stock, steps = pipe.scheduler.to_diffusers(cls), 5 if solver == "ddim" else 7
    z_star = torch.tensor(SKEWED["z_star"]).reshape(1, 3, 1, 1)

    def note(pipeline, step, timestep, kwargs):
        seen.append((int(timestep), kwargs["latents"]))

    options = {"solver": solver, "timestep_spacing": spacing, "num_inference_steps": steps}
    z_0 = run(pipe, latents=noise, output_type="latent", callback_on_step_end=note, **options)
    times = [t for t, _ in seen]
    assert len(times) == steps and times[-1] == 0
    stock.set_timesteps(**{"num_inference_steps": steps} if solver == "ddim" else {"timesteps": times})
    assert stock.timesteps.tolist() == times

    def m(t: int) -> float:
        abar, s2 = float((1 - pipe.scheduler.betas[: t + 1].double()).prod()), 1.2**2 / (2 * 2.0)
        return math.sqrt(abar + s2 * (1 - abar))

    x = noise * pipe.scheduler.stationary_std / m(times[0])  # z_T ~ N(z*, s^2), as the paper starts
    for t, prev, (_, z) in zip(times, [*times[1:], -1], seen, strict=True):
        output = predict(pipe.unet, x, t) - (z_star if prediction_type == "sample" else 0.0)
        x = stock.step(output, t, x).prev_sample
        torch.testing.assert_close(z, z_star + m(prev) * x, atol=1e-4, rtol=1e-4)
    assert torch.equal(z_0, z)


def test_twenty_steps_of_dpm_solver_are_the_default():
    pipe, noise = make_pipeline(), torch.randn(2, 3, 3, 3)
    default = pipe(2, latents=noise, output_type="latent").images
    assert pipe.num_timesteps == 20
    options = {"latents": noise, "output_type": "latent", "num_inference_steps": 20}
    assert torch.equal(default, run(pipe, **options, solver="dpmsolver++"))
    for solver in ("ddim", "ancestral"):
        assert not torch.equal(default, run(pipe, **options, solver=solver))
    even = run(pipe, **options | {"num_inference_steps": 5}, timestep_spacing="trailing")
    assert pipe.scheduler.timesteps.tolist() == [19, 15, 11, 7, 3]
    assert not torch.equal(even, run(pipe, **options | {"num_inference_steps": 5}))


@pytest.mark.parametrize("option", [{"solver": "ddim"}, {"timestep_spacing": "trailing"}])
def test_a_stock_scheduler_takes_no_solver(option):
    pipe = make_pipeline()
    pipe.scheduler = pipe.scheduler.to_diffusers(DDIMScheduler)
    with pytest.raises(ValueError, match="leave both out"):
        run(pipe, **option)


@pytest.mark.parametrize("cls", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_swapping_is_refused_where_it_would_be_wrong(cls):
    pipe = make_pipeline()  # s = 0.6
    bridge = pipe.scheduler
    pipe.scheduler = cls.from_config(bridge.config)
    with pytest.raises(ValueError, match=rf"to_diffusers\({cls.__name__}\)"):
        run(pipe)
    pipe.scheduler = bridge.to_diffusers(cls)  # what the message says
    assert run(pipe, output_type="latent").isfinite().all()


@pytest.mark.parametrize("cls", [None, DDIMScheduler, PNDMScheduler])
def test_num_timesteps_counts_the_steps(cls):
    """PNDM takes more steps than it is asked for."""
    pipe, steps = make_pipeline(), []
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)

    def count(pipeline, step, timestep, kwargs):
        steps.append((step, pipeline.num_timesteps))
        return {}

    for n in (4, 5):
        steps.clear()
        run(pipe, num_inference_steps=n, callback_on_step_end=count)
        assert [s for s, _ in steps] == list(range(pipe.num_timesteps))
        assert all(total == pipe.num_timesteps for _, total in steps)  # known during the call, for progress


@pytest.mark.parametrize("cls", [DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler])
@pytest.mark.parametrize("steps", [21, 0, -1])
def test_number_of_steps_is_checked_for_stock_schedulers(cls, steps):
    """DPM-Solver with 0 steps would return undenoised images, DDIM with -1 and PNDM with too many some images."""
    pipe = make_pipeline()
    pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    with pytest.raises(ValueError, match="num_inference_steps"):
        run(pipe, num_inference_steps=steps)
