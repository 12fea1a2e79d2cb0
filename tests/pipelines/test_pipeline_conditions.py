"""Calls of a pipeline that draws from images."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import STEPS, make_conditioned_pipeline, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli.conditions import read_conditions
from diffusion_bridge_vq.cli.next_steps import after_pipeline
from diffusion_bridge_vq.model_card import make_model_card
from diffusion_bridge_vq.onnx_export import export_onnx
from diffusion_bridge_vq.pipelines.modular_blocks import DiffusionBridgeVQBlocks

GRAY = torch.rand(2, 1, 8, 8, generator=rng()).mul(255).round().div(255)


@pytest.fixture(scope="module")
def pipe():
    return make_conditioned_pipeline()


def draw(pipe, condition, **options) -> torch.Tensor:
    options = {"num_inference_steps": STEPS, "generator": rng(), "output_type": "latent"} | options
    return pipe(condition=condition, **options).images


def test_all_forms_of_an_image_draw_the_same(pipe):
    """As many images as conditions; a color picture becomes gray."""
    drawn = draw(pipe, GRAY)
    numbers = GRAY.movedim(1, -1).numpy()
    pictures = [Image.fromarray(np.uint8((image[..., 0] * 255).round())) for image in numbers]
    for form in (numbers, list(GRAY), pictures, [picture.convert("RGB") for picture in pictures]):
        torch.testing.assert_close(draw(pipe, form), drawn)
    assert drawn.shape == (2, 3, 4, 4)
    other = draw(pipe, 1 - GRAY)
    assert (other - drawn).abs().flatten(1).max(dim=1).values.min() > 1e-3


def test_one_condition_is_for_all(pipe):
    assert torch.equal(draw(pipe, GRAY[:1], batch_size=2), draw(pipe, GRAY[[0, 0]]))


@pytest.mark.parametrize("classes", [None, 4])
def test_guidance_follows_the_condition(classes):
    """In one step to z_0, which is linear in the network's output."""
    pipe = make_conditioned_pipeline(classes=classes)
    labels = {} if classes is None else {"class_labels": [0, 1]}
    options: dict = labels | {"num_inference_steps": 1, "solver": "ddim"}
    one, two, three = (draw(pipe, GRAY, guidance_scale=scale, **options) for scale in (1.0, 2.0, 3.0))
    torch.testing.assert_close(three - two, two - one, atol=1e-4, rtol=1e-4)
    assert (two - one).abs().max() > 1e-3


def test_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
    assert loaded.config.condition == "gray"
    card = make_model_card(tmp_path, "user/model").content
    assert "drawn from images (`condition`): gray." in card and "pipe(condition=image)" in card
    assert "--condition PICTURE" in after_pipeline(tmp_path, tmp_path)[0][0]
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded, GRAY), draw(pipe, GRAY))
    with pytest.raises(ValueError, match=r"can't be loaded.*must be gray, low-resolution:SIDE or column:NAME"):
        DiffusionBridgeVQPipeline.from_pretrained(tmp_path, condition="__import__")


def test_known_parts_and_a_condition(pipe):
    inpaint = DiffusionBridgeVQInpaintPipeline(**pipe.components, condition="gray")
    inpaint.set_progress_bar_config(disable=True)
    image, everything = torch.rand(2, 3, 8, 8, generator=rng()), torch.ones(1, 8, 8)

    def complete(condition, **options):
        return inpaint(image, everything, STEPS, generator=rng(), output_type="latent", condition=condition, **options)

    torch.testing.assert_close(complete(GRAY).images, draw(pipe, GRAY, solver="ancestral"))
    twice = complete(GRAY, num_completions=2).images
    repeated = draw(pipe, GRAY.repeat_interleave(2, dim=0), solver="ancestral")
    torch.testing.assert_close(twice, repeated)
    with pytest.raises(ValueError, match="Got 3 conditions for 2 images"):
        complete(GRAY[[0, 1, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": None}, r"draws from images \(gray\): give them as `condition`, 8 x 8 with 1 channel"),
        ({"condition": GRAY[..., :4]}, r"`condition` must be 8 x 8 with 1 channel\(s\).*got 8 x 4 with 1"),
        ({"condition": GRAY.expand(2, 3, 8, 8)}, r"`condition` must be 8 x 8 with 1.*got 8 x 8 with 3"),
        ({"condition": GRAY * 2}, r"`condition` must have values in \[0, 1\]"),
        ({"condition": GRAY * float("nan")}, r"`condition` must have values in \[0, 1\]"),
        ({"condition": []}, "`condition` is empty"),
        ({"condition": "photo.png"}, "must be PIL images, numpy arrays"),
        ({"batch_size": 3}, "Got 2 conditions for 3 images"),
        ({"class_labels": 0}, "has no classes"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(pipe, change, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"condition": GRAY, "num_inference_steps": STEPS} | change)


def test_models_and_conditions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="This model doesn't draw from images: leave out `condition`"):
        make_pipeline()(condition=GRAY)
    with pytest.raises(ValueError, match="in_channels=7 and out_channels=3"):
        make_conditioned_pipeline("low-resolution:4", channels=5)
    oblong = make_pipeline(size=[4, 5])
    with pytest.raises(ValueError, match="`condition` needs square latents, got 4 x 5"):
        DiffusionBridgeVQPipeline(**oblong.components, condition="gray")


def test_small_images_are_conditions():
    small = make_conditioned_pipeline("low-resolution:4", channels=4)
    assert draw(small, torch.rand(2, 3, 4, 4, generator=rng())).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"`condition` must be 4 x 4 with 3 channel\(s\).*got 8 x 8"):
        draw(small, Image.new("RGB", (8, 8)))


def test_pictures_of_any_size_from_files(pipe, tmp_path):
    """A picture twice as large, whose left half is red, without the margin that is cropped."""
    picture = Image.new("RGB", (24, 16), "white")
    picture.paste((255, 0, 0), (0, 0, 12, 16))
    picture.save(tmp_path / "picture.png")
    (gray,) = read_conditions(pipe, [tmp_path / "picture.png"])
    assert gray.shape == (1, 8, 8)
    torch.testing.assert_close(gray[0, :, :2], torch.full((8, 2), 76 / 255), atol=0.01, rtol=0)
    (small,) = read_conditions(make_conditioned_pipeline("low-resolution:2", channels=4), [tmp_path / "picture.png"])
    expected = torch.tensor([[1.0, 1], [0, 1], [0, 1]])[:, None].expand(3, 2, 2)  # red, white
    torch.testing.assert_close(small, expected, atol=0.05, rtol=0)  # bicubic edges
    values = torch.randint(256, (2, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(values.numpy()).save(tmp_path / "low.png")  # is the condition itself
    (low,) = read_conditions(make_conditioned_pipeline("low-resolution:2", channels=4), [tmp_path / "low.png"])
    assert torch.equal((low * 255).round().byte(), values.permute(2, 0, 1))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"--condition: .*text.png can't be read \(not an image"):
        read_conditions(pipe, [tmp_path / "text.png"])
    with pytest.raises(ValueError, match="leave out --condition"):
        read_conditions(make_pipeline(), [tmp_path / "picture.png"])
    with pytest.raises(ValueError, match=r"draws from images \(gray\): give them by --condition PICTURE"):
        read_conditions(pipe, None)


def test_what_takes_no_condition_says_so(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"draws from images.*the export to ONNX doesn't take"):
        export_onnx(pipe, tmp_path)
    modular = DiffusionBridgeVQBlocks().init_pipeline()
    modular.update_components(unet=pipe.unet, scheduler=pipe.scheduler, vqvae=pipe.vqvae)
    with pytest.raises(ValueError, match=r"draws from images.*these blocks don't take"):
        modular(batch_size=1, output="images")


def test_a_text_first_is_a_class():
    pipe = make_pipeline(3)
    pipe = DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, pipe.scheduler, {0: "ship", 1: "horse"})
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "output_type": "latent"}

    def drawn(*first, **labels):
        return pipe(*first, generator=rng(), **options, **labels).images

    assert torch.equal(drawn("horse"), drawn(class_labels="horse"))
    assert torch.equal(drawn(["horse", "ship"]), drawn(class_labels=["horse", "ship"]))
    with pytest.raises(ValueError, match="given twice, as 'horse' and as `class_labels` 'ship'"):
        drawn("horse", class_labels="ship")
    with pytest.raises(ValueError, match="There is no class 'cat'"):
        drawn("cat")
    with pytest.raises(ValueError, match=r"must be a whole number of at least 1, got \[1, 0\]; .*as `class_labels`"):
        drawn([1, 0])
