"""The inpainting pipeline against the encoder, the unconditional pipeline and itself in other forms of input."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from inpainting_calls import HIDDEN_LATENTS, make, make_images, make_mask, run
from PIL import Image
from tiny_models import STEPS, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline
from diffusion_bridge_vq.data.decoding import decode_image

# ------------------------------------------------------------------------------------------------ what is known


@pytest.mark.parametrize("cls", [None, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_known_latents_are_the_encoders_and_the_others_are_drawn(cls):
    pipe = make()
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    images = make_images().float() / 255
    visible = images * 2 - 1
    visible[:, :, make_mask() > 0] = 0
    encoded = pipe.vqvae.encode(visible).latents
    runs = [run(pipe, images, seed=seed, output_type="latent") for seed in (0, 1)]
    for z_0 in runs:
        torch.testing.assert_close(z_0[:, :, ~HIDDEN_LATENTS], encoded[:, :, ~HIDDEN_LATENTS], atol=1e-5, rtol=0)
    assert (runs[0] - runs[1])[:, :, HIDDEN_LATENTS].abs().amin() > 1e-6


def test_hidden_pixels_are_never_looked_at():
    pipe, images = make(), make_images().float() / 255
    other = torch.where(make_mask() > 0, torch.rand(images.shape), images)
    assert torch.equal(run(pipe, images), run(pipe, other))
    assert not torch.equal(run(pipe, images), run(pipe, images.flip(0)))


@pytest.mark.parametrize("cls", [None, DDIMScheduler])
def test_everything_known_is_the_reconstruction(cls):
    pipe = make()
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    images = make_images().float() / 255
    with torch.no_grad():
        reconstruction = (pipe.vqvae(images * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(run(pipe, images, torch.zeros(6, 6)), reconstruction, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls", [None, DDIMScheduler])
def test_nothing_known_is_unconditional_sampling(cls):
    pipe = make()
    if cls is not None:
        pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    unconditional = DiffusionBridgeVQPipeline(**pipe.components)
    unconditional.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "output_type": "pt"}
    for solver in ("ancestral", "dpmsolver++") if cls is None else (None,):
        expected = unconditional(batch_size=2, generator=rng(), solver=solver, **options).images
        assert torch.equal(run(pipe, mask=torch.ones(6, 6), solver=solver), expected)
    if cls is None:
        assert torch.equal(run(pipe, seed=1), run(pipe, seed=1, solver="ancestral"))  # its default


def test_classes():
    pipe = make(classes=4)
    unconditional = DiffusionBridgeVQPipeline(**pipe.components)
    unconditional.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "output_type": "pt", "guidance_scale": 2.0, "solver": "ancestral"}
    expected = unconditional(batch_size=4, class_labels=[0, 0, 2, 2], generator=rng(), **options).images
    got = run(pipe, mask=torch.ones(6, 6), class_labels=[0, 2], num_completions=2, **options)
    assert torch.equal(got, expected)


# ------------------------------------------------------------------------------------------------------- input


def forms(images: torch.Tensor) -> dict:
    """The same uint8 images in every form that is taken."""
    arrays = images.movedim(1, -1).numpy()  # (B, H, W, C)
    flat = arrays[..., 0] if images.shape[1] == 1 else arrays
    floats = images.float() / 255
    return {
        "tensor": floats,
        "uint8 tensor": images,
        "tensors": list(floats),
        "array": arrays.astype(np.float32) / 255,
        "float64 array": arrays / 255,
        "arrays": list(arrays),
        "PIL": [Image.fromarray(a) for a in flat],
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_of_image_gives_the_same(channels):
    pipe, images = make(channels=channels), make_images(channels=channels)
    results = {name: run(pipe, image) for name, image in forms(images).items()}
    for name, result in results.items():
        torch.testing.assert_close(result, results["tensor"], atol=1e-5, rtol=0, msg=name)
    single = run(pipe, forms(images)["PIL"][0])
    torch.testing.assert_close(single, run(pipe, images[0]), atol=1e-5, rtol=0)
    assert (results["tensor"][0] - results["tensor"][1]).abs().max() > 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_as_for_training(channels, tmp_path):
    """Files opened with Pillow, against what training makes of the same files."""
    generator = np.random.default_rng(0)
    wide = Image.fromarray(generator.integers(0, 2**16, (6, 6), dtype=np.uint16))
    rgba = Image.fromarray(generator.integers(0, 256, (6, 6, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    wide.save(tmp_path / "wide.png")
    wide.save(tmp_path / "wide.pgm")
    rgba.save(tmp_path / "transparent.png")
    rgba.convert("RGB").quantize(8).save(tmp_path / "palette.png", transparency=1)
    rgba.convert("RGB").save(tmp_path / "turned.png", exif=exif)
    pipe = make(channels=channels)
    for path in sorted(tmp_path.iterdir()):
        trained_on = torch.tensor(decode_image({"bytes": None, "path": path}, 6, channels))
        with Image.open(path) as picture, Image.open(path) as untouched:
            assert torch.equal(run(pipe, picture), run(pipe, trained_on)), path.name
            assert dict(picture.getexif()) == dict(untouched.getexif())  # it is as it was
    mask = Image.fromarray((make_mask().numpy() * 65535).astype(np.uint16))
    assert torch.equal(pipe.read_mask(mask, 1)[0, 0], make_mask() > 0)
    with pytest.raises(ValueError, match="mode F"):
        run(pipe, rgba.convert("F"))


def test_every_form_of_mask_gives_the_same():
    pipe, mask = make(), make_mask()
    array = mask.numpy()
    picture = Image.fromarray((255 * array).astype(np.uint8))
    expected = run(pipe, mask=mask)
    assert not torch.equal(expected, run(pipe, mask=torch.ones(6, 6)))
    for form in (
        mask > 0,
        mask[None],
        mask[None, None],
        [mask, mask],
        mask.expand(2, 1, 6, 6),
        array,
        array > 0,
        array[..., None],
        array.astype(np.uint8) * 255,
        picture,
        [picture],
        picture.convert("1"),
        picture.convert("RGB"),
    ):
        assert torch.equal(run(pipe, mask=form), expected)


def test_a_mask_for_each_image():
    pipe, images = make(), make_images().float() / 255
    masks = torch.stack([make_mask(), make_mask().flip(0, 1)])[:, None]
    together = run(pipe, images, masks, generator=[rng(0), rng(1)], seed=None)
    for i in range(2):
        torch.testing.assert_close(run(pipe, images[i], masks[i], seed=i)[0], together[i], atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------ output


def test_completions_are_independent_and_neighbors():
    pipe, images = make(), make_images().float() / 255
    generators = [rng(s) for s in range(6)]
    batch = run(pipe, images, num_completions=3, generator=generators, seed=None)
    assert len(batch) == 6
    for i in range(6):
        single = run(pipe, images[i // 3], seed=i)
        torch.testing.assert_close(batch[i], single[0], atol=1e-5, rtol=0)
    assert (batch[0] - batch[1]).abs().max() > 0.01


def test_composite():
    pipe, images, mask = make(), make_images(), make_mask()
    floats, known = images.float() / 255, mask == 0
    decoded = run(pipe)
    for strength in (0.25, 1.0):
        mixed = run(pipe, composite_strength=strength)
        expected = torch.where(known, torch.lerp(decoded, floats, strength), decoded)
        torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)
    for image, original in zip(run(pipe, images, composite_strength=1.0, output_type="pil"), images, strict=True):
        pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)
        assert torch.equal(pixels[:, known], original[:, known])  # to the bit


def test_output_types_agree():
    pipe = make()
    pt, array, pil = run(pipe), run(pipe, output_type="np"), run(pipe, output_type="pil")
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(pil[1]), (array[1] * 255).round().astype(np.uint8))
    tuple_ = pipe(
        make_images(), make_mask(), num_inference_steps=STEPS, generator=rng(), output_type="pt", return_dict=False
    )
    assert torch.equal(tuple_[0], pt)


def test_resampling_walks_again():
    pipe, steps = make(), []

    def note(_, step, timestep, kwargs):
        steps.append(step)
        return {}

    run(pipe, jump_length=2, jump_n_sample=3, callback_on_step_end=note)
    assert steps == [0, 1] * 3 + [2, 3] * 3


def test_an_autoencoder_in_training_mode_is_refused():
    """Its normalizer would learn from the images of the call."""
    pipe = make()
    pipe.vqvae.train()
    before = pipe.vqvae.normalizer.running_mean.clone()
    with pytest.raises(ValueError, match=r"call `pipe\.vqvae\.eval\(\)`"):
        run(pipe)
    assert torch.equal(pipe.vqvae.normalizer.running_mean, before)


# ------------------------------------------------------------------------------------------------------ loading


def test_a_saved_generation_pipeline_loads_here(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionBridgeVQInpaintPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is DiffusionBridgeVQInpaintPipeline
    assert torch.equal(run(loaded), run(make()))
    again = DiffusionBridgeVQInpaintPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), run(make()))


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.rand(2, 3, 8, 8)}, r"6 x 6 .* isn't resized here\), got 8 x 8"),
        ({"image": Image.new("RGB", (6, 5))}, "6 x 6 .* got 5 x 6"),
        ({"image": torch.rand(2, 1, 6, 6)}, "3 channel"),
        ({"image": torch.rand(2, 3, 6, 6) * 2 - 1}, r"values in \[0, 1\]"),
        ({"image": torch.full((2, 3, 6, 6), float("nan"))}, r"values in \[0, 1\]"),
        ({"image": []}, "`image` is empty"),
        ({"image": "picture.png"}, "must be PIL images"),
        ({"image": [Image.new("RGB", (6, 6)), Image.new("RGB", (8, 8))]}, "isn't resized"),
        ({"mask": torch.zeros(5, 6)}, "`mask_image` must be 6 x 6"),
        ({"mask": torch.zeros(3, 1, 6, 6)}, "3 masks for 2 images"),
        ({"mask": torch.zeros(0, 6)}, "`mask_image` is empty"),
        ({"mask": []}, "`mask_image` is empty"),
        ({"mask": torch.full((6, 6), 0.5)}, "black"),
        ({"mask": Image.new("L", (6, 6), 127)}, "black"),
        ({"composite_strength": 1.5}, "composite_strength"),
        ({"composite_strength": 0.5, "output_type": "latent"}, "composite_strength"),
        ({"num_completions": 0}, "num_completions"),
        ({"jump_length": 0}, "jump_length"),
        ({"generator": [rng()] * 3, "seed": None}, "3 generators for a batch of 2"),
        ({"output_type": "jpg"}, "output_type"),
        ({"class_labels": 0}, "no classes"),
        ({"num_inference_steps": 21}, "num_inference_steps"),
        ({"callback_on_step_end_tensor_inputs": ["mask"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        run(make(), **change)
