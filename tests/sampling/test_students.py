"""
Consistency sampling of students whose map from noise to z_0 is known: closed forms on Gaussian data, and the exact
denoiser of the toy.
"""

import math

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from tiny_models import make_pipeline, rng
from torch import nn

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.toy.networks import MixtureDenoiser
from diffusion_bridge_vq.toy.walks import NOISE_STD, all_toy_sequences, toy_codebook

FEW_STEPS = {"1": [999], "2": [999, 600], "3": [999, 700, 400], "4": [999, 800, 600, 300]}


def student_scheduler(**changes) -> OUBridgeScheduler:
    settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "few_step_timesteps": FEW_STEPS}
    return OUBridgeScheduler(**settings | {"distilled_guidance_scale": 1.0} | changes)


class GaussianStudent(nn.Module):
    """
    The probability-flow map of data N(mean, std^2) from any level to z_0. It keeps the number of standard deviations
    from the mean, so it is affine: z_0 = mean + std (x_t - signal mean) / sqrt(signal^2 std^2 + noise^2).
    """

    def __init__(self, scheduler: OUBridgeScheduler, mean: float, std: float):
        super().__init__()
        snr = scheduler.signal_to_noise(torch.arange(len(scheduler)))
        self.signal, self.noise = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
        self.mean, self.std = mean, std

    def forward(self, x, t):
        signal, noise = self.signal[t].to(x.dtype), self.noise[t].to(x.dtype)
        deviations = (x - signal * self.mean) / (signal**2 * self.std**2 + noise**2).sqrt()
        return self.mean + self.std * deviations


@pytest.mark.parametrize("eta", [1.0, 4.0])
def test_one_step_of_gaussian_data_is_exact(eta):
    """Noise goes to mean + std noise: the law is N(mean, std^2)."""
    scheduler = student_scheduler(eta=eta)
    noise = torch.randn(50, 2, 5, generator=rng(), dtype=torch.float64)
    student = GaussianStudent(scheduler, 0.7, 0.4)
    z_0 = sample_latents(student, scheduler, noise.shape, 1, dtype=noise.dtype, latents=noise)
    torch.testing.assert_close(z_0, 0.7 + 0.4 * noise, atol=1e-3, rtol=0)  # of what is left of z_0 at T


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_more_steps_keep_the_law_of_gaussian_data(steps):
    """Noising a draw of the law by q(z_s | z_0) and mapping it back gives the law again, and new samples."""
    scheduler, n = student_scheduler(eta=3.0), 20_000
    student = GaussianStudent(scheduler, 0.7, 0.4)
    noise = torch.randn(n, 1, 2, generator=rng(1))
    z_0 = sample_latents(student, scheduler, noise.shape, steps, generator=rng(2), latents=noise)
    assert abs(z_0.mean() - 0.7) < 4 * 0.4 / math.sqrt(2 * n)
    assert abs(z_0.std() - 0.4) < 4 * 0.4 / math.sqrt(4 * n)
    correlation = torch.corrcoef(torch.stack([z_0.flatten(), noise.flatten()]))[0, 1]
    expected = math.prod(kept(scheduler, t, 0.4) for t in FEW_STEPS[str(steps)][1:])
    assert abs(correlation - expected) < 4 / math.sqrt(2 * n)


def kept(scheduler: OUBridgeScheduler, timestep: int, std: float) -> float:
    """Correlation of x_t with z_0 where z_0 has standard deviation `std`."""
    snr = std**2 * scheduler.signal_to_noise(torch.tensor([timestep])).item()
    return math.sqrt(snr / (1 + snr))


class FlowStudent(nn.Module):
    """Follows the probability flow of an exact denoiser from any level to z_0, in many steps of the tested solver."""

    def __init__(self, denoiser: nn.Module, scheduler: OUBridgeScheduler, steps: int):
        super().__init__()
        self.denoiser, self.scheduler, self.steps = denoiser, scheduler, steps

    def forward(self, x, t):
        log_snr = self.scheduler.signal_to_noise(torch.arange(len(self.scheduler))).log()
        wanted = torch.linspace(max(log_snr[int(t)].item(), -10.0), 8.0, self.steps, dtype=log_snr.dtype)
        near = (log_snr[:, None] - wanted).abs().argmin(0)
        chosen = sorted({min(int(t), level) for level in near.tolist()} | {int(t)}, reverse=True)
        flow = OUBridgeScheduler.from_config(
            self.scheduler.config,
            distilled_guidance_scale=None,
            few_step_timesteps={str(len(chosen)): chosen},
        )
        snr = self.scheduler.signal_to_noise(t.reshape(1)).item()
        z_t = x * math.sqrt(self.scheduler.alphas_cumprod[int(t)].item() * (1 + 1 / snr))
        # "latents" are noise of unit variance
        return sample_latents(self.denoiser, flow, x.shape, len(chosen), latents=z_t / flow.stationary_std)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exact_student_of_the_toy_draws_its_law(steps):
    """
    The exact flow maps q_t to the data's law p for every t, so noising and mapping again keep p. The total variation
    from p is thus at most that of the start, N(z*, s^2) instead of q_T, for which Pinsker gives sqrt(KL / 2). A
    histogram of n draws over 128 cells differs from p by sqrt(2 * 128 / (pi n)) / 2 on average, with a standard
    deviation of sqrt((1 - 2 / pi) / n) / 2.
    """
    scheduler, n = student_scheduler(eta=2.0), 4000
    sequences, codebook = all_toy_sequences(), toy_codebook()
    walks = codebook[sequences].transpose(1, 2)
    student = FlowStudent(MixtureDenoiser(walks, NOISE_STD, scheduler), scheduler, steps=24)
    z_0 = sample_latents(student, scheduler, (n, 2, 5), steps, generator=rng())
    codes = torch.cdist(z_0.transpose(1, 2).contiguous(), codebook).argmin(-1)
    frequencies = (codes[:, None] == sequences).all(-1).float().mean(0)
    variation = 0.5 * ((frequencies - 1 / 128).abs().sum() + 1 - frequencies.sum())
    start = (scheduler.terminal_kl(walks).flatten(1).sum(1).mean() / 2).sqrt()
    sampling = 0.5 * (math.sqrt(256 / (math.pi * n)) + 4 * math.sqrt((1 - 2 / math.pi) / n))
    assert start < 0.01 and variation < start + sampling


# ------------------------------------------------------------------------------------------- schedulers and pipelines


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_lcm_scheduler_of_diffusers_gives_the_same(steps):
    """Its noise is the same, and its weight of the input vanishes at these timesteps."""
    scheduler = student_scheduler(eta=3.0, z_star=0.3)
    student = GaussianStudent(scheduler, 0.7, 0.4)
    ours = sample_latents(student, scheduler, (20, 2, 5), steps, generator=rng())
    stock = scheduler.to_diffusers(LCMScheduler)
    theirs = sample_latents(student, stock, (20, 2, 5), steps, generator=rng())
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.fixture
def pipe() -> DiffusionBridgeVQPipeline:
    return make_pipeline(classes=3, prediction_type="sample", few_step_timesteps=FEW_STEPS, distilled_guidance_scale=2)


def test_the_pipeline_of_a_student_calls_the_network_once_a_step(pipe, tmp_path):
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    call = {"class_labels": [0, 1], "output_type": "latent"}
    pipe(2, **call)
    assert len(calls) == 1 == pipe.num_timesteps
    images = pipe(2, 4, generator=rng(), **call).images
    assert len(calls) == 5 and pipe.scheduler.timesteps.tolist() == FEW_STEPS["4"]
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    again = loaded(2, 4, guidance_scale=2.0, solver="consistency", generator=rng(), **call).images
    torch.testing.assert_close(again, images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_inference_steps": 50}, r"distilled to draw in 1, 2, 3 or 4 steps, got `num_inference_steps` 50"),
        ({"guidance_scale": 1.5}, r"distilled with a guidance scale of 2, which costs nothing.*got 1\.5"),
        ({"solver": "dpmsolver++"}, r"distilled: leave out `solver`, got 'dpmsolver\+\+'"),
        ({"timestep_spacing": "logsnr"}, "leave out `timestep_spacing`, got 'logsnr'"),
    ],
)
def test_what_a_student_refuses(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe(2, class_labels=0, **call)


def test_a_student_completes_no_images(pipe):
    mask = torch.zeros(6, 6)
    mask[:4] = 1
    with pytest.raises(ValueError, match="complete images with its teacher"):
        DiffusionBridgeVQInpaintPipeline(**pipe.components)(torch.rand(1, 3, 6, 6), mask, 4, class_labels=1)


def test_schedulers_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"DDIMScheduler takes many small steps.*take LCMScheduler"):
        student_scheduler().to_diffusers(DDIMScheduler)
    with pytest.raises(ValueError, match="LCMScheduler needs a network that was distilled for it"):
        OUBridgeScheduler(prediction_type="sample").to_diffusers(LCMScheduler)
    with pytest.raises(ValueError, match="'consistency' needs a network that was distilled"):
        scheduler = OUBridgeScheduler(prediction_type="sample")
        sample_latents(GaussianStudent(scheduler, 0, 1), scheduler, (1, 2, 5), 4, solver="consistency")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"few_step_timesteps": None}, "needs `few_step_timesteps`"),
        ({"few_step_timesteps": {"2": [5]}}, r"descending, got \[5\] for '2'"),
        ({"few_step_timesteps": {"2": [5, 7]}}, r"descending, got \[5, 7\] for '2'"),
        ({"few_step_timesteps": {"1": [1000]}}, r"must lie in 0\.\.999, got \[1000\]"),
        ({"few_step_timesteps": [999]}, "must be a dict from numbers of steps"),
        ({"distilled_guidance_scale": math.nan}, "finite number or None, got nan"),
        ({"prediction_type": "epsilon"}, "which no predicted noise can give"),
    ],
)
def test_settings_that_no_student_has(settings, message):
    with pytest.raises(ValueError, match=message):
        student_scheduler(**settings)


def test_fitted_timesteps_are_taken_where_no_spacing_is_asked_for():
    scheduler = student_scheduler(distilled_guidance_scale=None, few_step_timesteps={2: [900, 300]})
    network = MixtureDenoiser(toy_codebook()[all_toy_sequences()].transpose(1, 2), NOISE_STD, scheduler)
    for spacing, expected in ((None, [900, 300]), ("trailing", [999, 499])):
        sample_latents(network, scheduler, (1, 2, 5), 2, timestep_spacing=spacing)
        assert scheduler.timesteps.tolist() == expected
    sample_latents(network, scheduler, (1, 2, 5), 3)
    assert scheduler.timesteps.tolist()[0] > 900
