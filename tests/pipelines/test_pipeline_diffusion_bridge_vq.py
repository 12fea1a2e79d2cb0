"""The pipeline against loops by hand, diffusers' DDPMPipeline, and itself after saving, in parts and elsewhere."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from tiny_pipeline import BRIDGE, SKEWED, STEPS, make_pipeline, rng

import diffusion_bridge_vq
from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run(pipe: DiffusionBridgeVQPipeline, seed: int | None = 0, **kwargs):
    kwargs = {"batch_size": 2, "num_inference_steps": STEPS, "output_type": "pt"} | kwargs
    return pipe(**kwargs if seed is None else {"generator": rng(seed)} | kwargs).images


@torch.no_grad()
def decode(vqvae: GumbelVQModel, z_0: torch.Tensor) -> torch.Tensor:
    """Nearest codes by brute force, decoder, pixels in [0, 1]."""
    e = vqvae.quantize.embedding.weight.double()
    rows = z_0.double().movedim(1, -1)[..., None, :]
    z_q = e[(rows - e).square().sum(-1).argmin(-1)].float().movedim(-1, 1).contiguous()
    return (vqvae.decoder(vqvae.post_quant_conv(z_q)) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def predict(unet: UNet2DModel, x: torch.Tensor, t: int, **kwargs) -> torch.Tensor:
    """The network on a 3 x 3 grid, put into the corner of a 4 x 4 one."""
    padded = torch.zeros(len(x), 3, 4, 4)
    padded[..., :3, :3] = x
    return unet(padded, torch.tensor(t), **kwargs).sample[..., :3, :3]


# ---------------------------------------------------------------------------------------------- the numbers


def test_defaults_are_a_ddpm():
    """theta = 1, eta = sqrt(2), z* = 0: the latents of a loop with diffusers' DDPMScheduler at the same seed."""
    pipe = make_pipeline(**BRIDGE)
    ddpm = DDPMScheduler(**BRIDGE, clip_sample=False, timestep_spacing="leading")
    for steps in (STEPS, 20):
        g = rng(7)
        x = torch.randn(2, 3, 3, 3, generator=g)
        ddpm.set_timesteps(steps)
        for t in ddpm.timesteps.tolist():
            x = ddpm.step(predict(pipe.unet, x, t), t, x, generator=g).prev_sample
        z_0 = run(pipe, seed=7, solver="ancestral", num_inference_steps=steps, output_type="latent")
        assert z_0.std() > 0.3
        torch.testing.assert_close(z_0, x, atol=1e-4, rtol=1e-4)


def test_latents_are_those_of_diffusers_ddpm_pipeline():
    """On a grid that the U-Net takes as it is, the stock pipeline makes the same latents (clipped, as pixels)."""
    pipe = make_pipeline(size=4, **BRIDGE)
    stock = DDPMPipeline(pipe.unet, DDPMScheduler(**BRIDGE, clip_sample=False))
    stock.set_progress_bar_config(disable=True)
    expected = stock(batch_size=2, generator=rng(7), num_inference_steps=STEPS, output_type="np").images
    z_0 = run(pipe, seed=7, solver="ancestral", output_type="latent")
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
    pipe = make_pipeline(**BRIDGE, theta=0.5, eta=1.0, z_star=z_star)
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
    for t, prev in ((15, 10), (10, 5), (5, 0), (0, -1)):
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


# ------------------------------------------------------------------------------------------------ classes


def test_classes_and_guidance():
    pipe, noise = make_pipeline(classes=4, **BRIDGE), torch.randn(2, 3, 3, 3)
    pipe.scheduler = pipe.scheduler.to_diffusers(DDIMScheduler)
    ddim = DDIMScheduler(**BRIDGE, clip_sample=False)

    def by_hand(labels: list[int], scale: float) -> torch.Tensor:
        x = noise
        ddim.set_timesteps(STEPS)
        for t in ddim.timesteps.tolist():
            null = predict(pipe.unet, x, t, class_labels=torch.tensor([3, 3]))
            conditional = predict(pipe.unet, x, t, class_labels=torch.tensor(labels))
            x = ddim.step(null + scale * (conditional - null), t, x).prev_sample
        return x

    def latents(**kwargs) -> torch.Tensor:
        return run(pipe, latents=noise, output_type="latent", **kwargs)

    plain, guided, null = by_hand([0, 2], 1.0), by_hand([0, 2], 3.0), by_hand([3, 3], 1.0)
    assert min((a - b).abs().max() for a, b in ((plain, guided), (plain, null), (guided, null))) > 1e-2
    close = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(latents(class_labels=[0, 2]), plain, **close)
    torch.testing.assert_close(latents(class_labels=torch.tensor([0, 2], dtype=torch.int32)), plain, **close)
    torch.testing.assert_close(latents(class_labels=[0, 2], guidance_scale=3.0), guided, **close)
    torch.testing.assert_close(latents(), null, **close)  # no label: the null class, the network's last
    for one in (1, [1], torch.tensor(1)):
        torch.testing.assert_close(latents(class_labels=one), by_hand([1, 1], 1.0), **close)


def test_bad_classes():
    pipe = make_pipeline(classes=4)
    for labels in ([0, 3], [-1, 0], 3):  # 3 is the null class
        with pytest.raises(ValueError, match=r"must lie in 0\.\.2"):
            run(pipe, class_labels=labels)
    for labels in ([0, 1, 2], [0.0, 1.0], []):
        with pytest.raises(ValueError, match="2 integers or one"):
            run(pipe, class_labels=labels)
    with pytest.raises(ValueError, match="needs `class_labels`"):
        run(pipe, guidance_scale=2.0)
    for kwargs in ({"class_labels": 0}, {"guidance_scale": 2.0}):
        with pytest.raises(ValueError, match="has no classes"):
            run(make_pipeline(), **kwargs)


# ------------------------------------------------------------------------------------------------- outputs


def test_output_types_agree():
    pipe = make_pipeline()
    z_0 = run(pipe, output_type="latent")
    pt, array, pil = run(pipe), run(pipe, output_type="np"), run(pipe, output_type="pil")
    expected = decode(pipe.vqvae, z_0)
    assert expected.std() > 0.05
    torch.testing.assert_close(pt, expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    for image, pixels in zip(pil, array, strict=True):
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), (pixels * 255).round().astype(np.uint8))
    (images,) = pipe(batch_size=2, num_inference_steps=STEPS, generator=rng(), output_type="pt", return_dict=False)
    assert torch.equal(images, pt)
    assert not torch.equal(run(pipe, seed=1), pt)


def test_gray_images():
    pipe = make_pipeline(channels=1)
    pt, pil = run(pipe), run(pipe, output_type="pil")
    assert pt.shape == (2, 1, 6, 6) and pil[0].mode == "L"
    np.testing.assert_array_equal(np.asarray(pil[1]), (pt[1, 0].numpy() * 255).round().astype(np.uint8))


def test_saturated_pixels_are_clamped():
    pipe = make_pipeline()
    with torch.no_grad():
        pipe.vqvae.decoder.conv_out.weight.mul_(50)
    pt = run(pipe)
    assert pt.min() == 0 and pt.max() == 1
    torch.testing.assert_close(pt, decode(pipe.vqvae, run(pipe, output_type="latent")), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [None, [3, 5]])
def test_latent_size_is_the_networks_or_the_autoencoders(size):
    pipe = make_pipeline(size=size)
    height, width = (3, 3) if size is None else size
    assert run(pipe, output_type="latent").shape == (2, 3, height, width)
    assert run(pipe).shape == (2, 3, 2 * height, 2 * width)


def test_lookup_from_codebook_changes_no_image():
    """This key of VQModel's changes the meaning of decode(force_not_quantize=True); old checkpoints have it."""
    pipe = make_pipeline()
    images = run(pipe)
    pipe.vqvae.register_to_config(lookup_from_codebook=True)
    assert torch.equal(run(pipe), images)


# ------------------------------------------------------------------------------------------------ randomness


@pytest.mark.parametrize("cls", [None, DDIMScheduler])
@pytest.mark.parametrize("sample_codes", [False, True])
def test_generators_make_a_batch_equal_to_single_runs(cls, sample_codes):
    pipe = make_pipeline()
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    single = [run(pipe, seed=s, batch_size=1, sample_codes=sample_codes)[0] for s in (3, 4, 5)]
    batch = run(pipe, generator=[rng(s) for s in (3, 4, 5)], batch_size=3, sample_codes=sample_codes)
    torch.testing.assert_close(batch, torch.stack(single), atol=1e-5, rtol=0)
    assert (single[0] - single[1]).abs().max() > 0.01


def test_given_latents_are_the_noise_a_generator_would_draw():
    pipe, g = make_pipeline(), rng(3)
    noise = torch.randn(2, 3, 3, 3, generator=g)
    assert torch.equal(run(pipe, seed=None, generator=g, latents=noise), run(pipe, seed=3))
    assert not torch.equal(run(pipe, seed=3, latents=noise.flip(0)), run(pipe, seed=3))
    with pytest.raises(ValueError, match=r"expected \(3, 3, 3, 3\)"):
        run(pipe, batch_size=3, latents=noise)


@torch.no_grad()
def test_codes_are_sampled_at_the_temperature_of_the_autoencoder():
    pipe, noise = make_pipeline(**SKEWED, variance_type="zero"), torch.randn(2, 3, 3, 3)
    z_0, nearest = run(pipe, latents=noise, output_type="latent"), run(pipe, latents=noise)
    vqvae = pipe.vqvae

    def images(temperature: float, seed: int) -> torch.Tensor:
        vqvae.register_to_config(temperature=temperature)
        return run(pipe, latents=noise, seed=seed, sample_codes=True)

    # the quantizer's own tests hold the law of these draws
    z_q = vqvae.decode_codes(vqvae.quantize.sample_codes(z_0, 0.7, rng(5))).contiguous()
    expected = (vqvae.decoder(vqvae.post_quant_conv(z_q)) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images(0.7, 5), expected, atol=1e-5, rtol=0)
    assert (images(0.7, 5) - images(0.7, 6)).abs().max() > 0.01
    torch.testing.assert_close(images(1e-6, 5), nearest, atol=1e-5, rtol=0)  # cold: the nearest


# -------------------------------------------------------------------------------------------------- callbacks


def test_callback_sees_every_step():
    pipe, seen = make_pipeline(), []

    def look(pipeline, step, timestep, kwargs):
        assert pipeline is pipe and set(kwargs) == {"latents"}
        seen.append((step, int(timestep), kwargs["latents"].clone()))
        return kwargs

    ancestral = {"solver": "ancestral", "output_type": "latent"}
    expected = run(pipe, **ancestral)
    z_0 = run(pipe, **ancestral, callback_on_step_end=look)
    assert torch.equal(z_0, expected)
    assert [entry[:2] for entry in seen] == [(0, 15), (1, 10), (2, 5), (3, 0)]
    assert torch.equal(seen[-1][2], z_0)
    assert len({float(entry[2].sum()) for entry in seen}) == STEPS

    for nothing in (None, {}):
        assert torch.equal(run(pipe, **ancestral, callback_on_step_end=lambda *_, n=nothing: n), expected)
    names = []
    run(
        pipe,
        callback_on_step_end=lambda pipeline, step, timestep, kwargs: names.append(dict(kwargs)),
        callback_on_step_end_tensor_inputs=[],
    )
    assert names == [{}] * STEPS
    assert "latents" in DiffusionBridgeVQPipeline._callback_tensor_inputs
    with pytest.raises(ValueError, match="noise_pred"):
        run(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["noise_pred"])


@pytest.mark.parametrize("cls", [None, DDIMScheduler])
def test_latents_from_the_callback_are_used(cls):
    pipe = make_pipeline(**SKEWED, variance_type="zero")
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    options = {"solver": None if cls else "ancestral", "output_type": "latent"}  # DPM-Solver++ remembers a step
    replacement = torch.randn(2, 3, 3, 3)

    def replace_at(when: int):
        return lambda pipeline, step, timestep, kwargs: {"latents": replacement} if step == when else {}

    # from a replaced first step on nothing is left of the seed, in a chain without noise
    first = [run(pipe, seed=s, **options, callback_on_step_end=replace_at(0)) for s in (0, 1)]
    assert torch.equal(*first) and not torch.equal(first[0], replacement)
    assert not torch.equal(run(pipe, 0, **options), run(pipe, 1, **options))
    last = run(pipe, **options, callback_on_step_end=replace_at(STEPS - 1))
    z_star = torch.tensor(SKEWED["z_star"]).reshape(1, 3, 1, 1)
    # a stock scheduler walks in x and z* is added at the end
    torch.testing.assert_close(last, replacement + (z_star if cls else 0.0))


@pytest.mark.parametrize("cls", [None, DDIMScheduler, PNDMScheduler])
def test_num_timesteps_counts_the_steps(cls):
    """PNDM takes more steps than it is asked for."""
    pipe, steps = make_pipeline(), []
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)

    def count(pipeline, step, timestep, kwargs):
        steps.append((step, pipeline.num_timesteps))
        return {}

    for n in (5, 6):
        steps.clear()
        run(pipe, num_inference_steps=n, callback_on_step_end=count)
        assert [s for s, _ in steps] == list(range(pipe.num_timesteps))
        assert all(total == pipe.num_timesteps for _, total in steps)  # known during the call, for progress


# ------------------------------------------------------------------------------------------- saving and loading


def test_components_are_the_init_arguments():
    pipe = make_pipeline()
    assert set(pipe.components) == {"vqvae", "unet", "scheduler"}
    again = DiffusionBridgeVQPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), run(pipe))
    assert DiffusionBridgeVQPipeline.model_cpu_offload_seq == "unet->vqvae"


SCRIPT = """
import sys
from diffusion_bridge_vq import DiffusionBridgeVQPipeline

pipe = DiffusionBridgeVQPipeline.from_pretrained(sys.argv[1])
import numpy as np
import torch

generator = torch.Generator().manual_seed(11)
np.save(sys.argv[2], pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="np").images)
"""


@pytest.mark.parametrize("kwargs", [{}, {"classes": 4}])
def test_round_trip(tmp_path, kwargs):
    pipe = make_pipeline(**kwargs)
    images = run(pipe, seed=11, output_type="np")
    pipe.save_pretrained(tmp_path / "pipe")
    assert not [p for p in (tmp_path / "pipe").rglob("*") if p.suffix not in ("", ".json", ".safetensors")]
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert {k: v for k, v in index.items() if not k.startswith("_")} == {
        "vqvae": ["diffusion_bridge_vq.models.autoencoder_gumbel_vq", "GumbelVQModel"],
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusion_bridge_vq.schedulers.scheduling_ou_bridge", "OUBridgeScheduler"],
    }
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    assert not loaded.vqvae.training and not loaded.unet.training
    assert {k: loaded.scheduler.config[k] for k in SKEWED} == SKEWED
    np.testing.assert_array_equal(run(loaded, seed=11, output_type="np"), images)
    if not kwargs:
        root = str(Path(diffusion_bridge_vq.__file__).parents[1])
        env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        out = tmp_path / "images.npy"
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "pipe"), str(out)], check=True, env=env, cwd=tmp_path
        )
        np.testing.assert_allclose(np.load(out), images, atol=1e-6)


def test_stock_scheduler_survives_saving(tmp_path):
    pipe = make_pipeline()
    pipe.scheduler = pipe.scheduler.to_diffusers(DPMSolverMultistepScheduler)
    images = run(pipe, output_type="latent")
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is DPMSolverMultistepScheduler
    torch.testing.assert_close(run(loaded, output_type="latent"), images, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------- precision, memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, dtype):
    """Against the same chain in float32 with the rounded weights and the same noise."""
    pipe = make_pipeline(**SKEWED, variance_type="zero")
    pipe.save_pretrained(tmp_path)
    half = DiffusionBridgeVQPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    half.set_progress_bar_config(disable=True)
    exact = pipe.to(dtype).to(torch.float32)
    noise = torch.randn(2, 3, 3, 3).to(dtype)
    expected, latents = (run(p, latents=noise, output_type="latent") for p in (exact, half))
    assert (half.unet.dtype, half.vqvae.dtype, latents.dtype) == (dtype, dtype, dtype)
    error = (latents.float() - expected).square().mean().sqrt() / expected.std()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)

    images = run(half, latents=noise)
    assert images.dtype == torch.float32 and images.isfinite().all()
    torch.testing.assert_close(images, decode(exact.vqvae, latents.float()), atol=0.02, rtol=0)
    half.vqvae.to(torch.float32)  # a mixed pipeline: latents as the U-Net's, pixels by the autoencoder's
    torch.testing.assert_close(run(half, latents=noise), decode(exact.vqvae, latents.float()), atol=1e-4, rtol=0)
    # drawn noise is the U-Net's dtype, as `randn_tensor` draws it
    g = rng(3)
    noise = torch.randn(2, 3, 3, 3, generator=g, dtype=dtype)
    assert torch.equal(run(half, seed=3, output_type="latent"), run(half, seed=3, latents=noise, output_type="latent"))


class Asleep(ModelHook):
    """Stands for offloading: the weights are away (zero) until the hook before a use brings them back."""

    def __init__(self, module: torch.nn.Module):
        self.weights = {k: v.clone() for k, v in module.state_dict().items()}
        with torch.no_grad():
            for tensor in module.state_dict().values():
                tensor.zero_()

    def pre_forward(self, module, *args, **kwargs):
        module.load_state_dict(self.weights)
        return args, kwargs


@pytest.mark.parametrize("sample_codes", [False, True])
def test_offloaded_weights_are_fetched_before_the_codebook_is_used(sample_codes):
    """`enable_model_cpu_offload` moves a model in when it is called; the codebook is used before the decoder."""
    pipe = make_pipeline()
    images = run(pipe, sample_codes=sample_codes)
    add_hook_to_module(pipe.vqvae, Asleep(pipe.vqvae))
    assert torch.equal(run(pipe, sample_codes=sample_codes), images)


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_hooks_are_freed_after_a_call(monkeypatch, output_type):
    pipe, freed = make_pipeline(), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    run(pipe, output_type=output_type)
    assert freed == [True]


# ----------------------------------------------------------------------------------------------------- compiling


class Counting:
    """A backend for `torch.compile` that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def no_compiled_code_left():
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("no_compiled_code_left")
@pytest.mark.parametrize("classes", [None, 4])
def test_compiled_images_are_the_same(tmp_path, classes):
    """Within 1e-5 in float32, with shapes compiled once; the layout is no part of what is saved."""
    pipe, backend = make_pipeline(classes=classes), Counting()
    labels = {"class_labels": [0, 2]} if classes else {}
    expected = run(pipe, **labels)
    pipe.compile(batch_size=2, backend=backend)
    graphs = backend.graphs
    assert graphs >= 2 and pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for solver in (None, "ancestral", "ddim"):
        for steps in (STEPS, 7):
            run(pipe, solver=solver, num_inference_steps=steps, **labels)
    torch.testing.assert_close(run(pipe, **labels), expected, atol=1e-5, rtol=0)
    assert backend.graphs == graphs  # neither steps, solvers nor noise compile anything again
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(run(loaded, **labels), expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("no_compiled_code_left")
def test_what_cannot_be_compiled_goes_on_with_a_warning(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    pipe = make_pipeline()
    expected = run(pipe)
    logging.getLogger("diffusers").addHandler(caplog.handler)
    pipe.compile(batch_size=2, backend=broken)
    logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert "goes on as it was" in caplog.text and "no compiler here" in caplog.text
    assert torch.equal(run(pipe), expected)


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -1}, "batch_size"),
        ({"output_type": "jpg"}, "pil, np, pt or latent"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for a batch of 2"),
        ({"num_inference_steps": 21}, r"1\.\.20"),
        ({"num_inference_steps": 0}, r"1\.\.20"),
        ({"num_inference_steps": -1}, r"1\.\.20"),
        ({"solver": "heun"}, "dpmsolver\\+\\+ or ddim, got 'heun'"),
        ({"timestep_spacing": "even"}, "logsnr, got 'even'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(make_pipeline(), **kwargs)


@pytest.mark.parametrize("cls", [DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler])
@pytest.mark.parametrize("steps", [21, 0, -1])
def test_number_of_steps_is_checked_for_stock_schedulers(cls, steps):
    """DPM-Solver with 0 steps would return undenoised images, DDIM with -1 and PNDM with too many some images."""
    pipe = make_pipeline()
    pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    with pytest.raises(ValueError, match="num_inference_steps"):
        run(pipe, num_inference_steps=steps)


def test_network_and_codebook_must_fit():
    pipe = make_pipeline()
    config = dict(pipe.unet.config)
    unet = UNet2DModel.from_config(config | {"in_channels": 4, "out_channels": 4})
    with pytest.raises(ValueError, match="in_channels=out_channels=3"):
        DiffusionBridgeVQPipeline(pipe.vqvae, unet, pipe.scheduler)
