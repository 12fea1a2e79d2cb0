"""
Calls of the pipeline against parts of them by hand. What its latents are is in test_pipeline_solvers.py, saving in
hub/test_folder.py.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from reference_pipeline import decode, predict, run
from simulated_offload import offload
from tiny_models import BRIDGE, SKEWED, STEPS, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQPipeline

# ------------------------------------------------------------------------------------------------------- classes


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


# ------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_output_types_agree(channels, mode):
    pipe = make_pipeline(channels=channels)
    pt, array, pil = run(pipe), run(pipe, output_type="np"), run(pipe, output_type="pil")
    expected = decode(pipe.vqvae, run(pipe, output_type="latent"))
    assert expected.std() > 0.05
    torch.testing.assert_close(pt, expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    for image, pixels in zip(pil, array, strict=True):
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image).reshape(6, 6, -1), (pixels * 255).round().astype(np.uint8))
    (images,) = pipe(batch_size=2, num_inference_steps=STEPS, generator=rng(), output_type="pt", return_dict=False)
    assert torch.equal(images, pt)
    assert not torch.equal(run(pipe, seed=1), pt)


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


# ---------------------------------------------------------------------------------------------------- randomness


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
def test_codes_are_drawn_by_the_law_of_training_whatever_its_temperature():
    pipe, noise = make_pipeline(**SKEWED, variance_type="zero"), torch.randn(2, 3, 3, 3)
    z_0, vqvae = run(pipe, latents=noise, output_type="latent"), pipe.vqvae

    def images(temperature: float, seed: int) -> torch.Tensor:
        vqvae.register_to_config(temperature=temperature)
        return run(pipe, latents=noise, seed=seed, sample_codes=True)

    # the quantizer's own tests hold the law of these draws
    z_q = vqvae.decode_codes(vqvae.quantize.sample_codes(z_0, 1.0, rng(5))).contiguous()
    expected = (vqvae.decoder(vqvae.post_quant_conv(z_q)) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images(0.7, 5), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(images(1e-6, 5), expected, atol=1e-5, rtol=0)
    assert (images(0.7, 5) - images(0.7, 6)).abs().max() > 0.01
    with pytest.raises(ValueError, match="before any code is drawn"):
        run(pipe, output_type="latent", sample_codes=True)


# ----------------------------------------------------------------------------------------------------- callbacks


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


# --------------------------------------------------------------------------------------------- precision, memory


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


@pytest.mark.parametrize(
    "options", [{"output_type": "latent"}, {"sample_codes": False}, {"sample_codes": True}], ids=str
)
def test_offloaded_weights_are_fetched_in_order_and_hooks_freed(monkeypatch, options):
    """`enable_model_cpu_offload` moves a model in when it is called; the codebook is used before the decoder."""
    pipe = make_pipeline()
    images = run(pipe, **options)
    used = offload(pipe, monkeypatch)
    torch.testing.assert_close(run(pipe, **options), images, atol=1e-5, rtol=1e-5)  # a hook may change rounding
    order = ["unet"] if "output_type" in options else pipe.model_cpu_offload_seq.split("->")
    assert list(dict.fromkeys(used)) == [*order, "freed"] and used.count("freed") == 1


# -------------------------------------------------------------------------------------------------------- errors


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
        ({"solver": "heun"}, "dpmsolver\\+\\+, ddim or consistency, got 'heun'"),
        ({"timestep_spacing": "even"}, "logsnr, got 'even'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(make_pipeline(), **kwargs)


def test_network_and_codebook_must_fit():
    pipe = make_pipeline()
    config = dict(pipe.unet.config)
    unet = UNet2DModel.from_config(config | {"in_channels": 4, "out_channels": 4})
    with pytest.raises(ValueError, match="in_channels=out_channels=3"):
        DiffusionBridgeVQPipeline(pipe.vqvae, unet, pipe.scheduler)
