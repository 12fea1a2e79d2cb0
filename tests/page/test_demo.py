"""What the page computes is what the pipelines compute."""

import io
import json
import urllib.request

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from PIL import Image
from tiny_models import (
    make_conditioned_pipeline,
    make_gray_pipeline,
    make_pipeline,
    make_student_pipeline,
    make_words_pipeline,
    rng,
)

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline
from diffusion_bridge_vq.page import Demo
from diffusion_bridge_vq.page.demo import file_name, model_name
from diffusion_bridge_vq.page.pictures import to_data_url
from diffusion_bridge_vq.sampling import sample_latents


def quiet(step: int, of: int) -> None:
    """A report that nobody reads."""


def opened(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(urllib.request.urlopen(data_url).read()))


def pixels(data_url: str) -> np.ndarray:
    return np.asarray(opened(data_url))


@pytest.fixture(scope="module")
def gray() -> Demo:
    return Demo(make_gray_pipeline(), "tiny")


@pytest.fixture(scope="module")
def classes() -> Demo:
    return Demo(make_pipeline(5), "tiny")  # four classes, and the last for none


def test_pictures_are_the_pipelines(gray):
    result = gray.generate(quiet, num_images=3, seed=7, num_inference_steps=5)
    expected = gray.pipe(3, 5, [rng(7), rng(8), rng(9)]).images
    assert [pixels(image["png"]).tolist() for image in result["images"]] == [np.asarray(e).tolist() for e in expected]
    assert [image["seed"] for image in result["images"]] == [7, 8, 9]


def test_pictures_are_drawn_from_a_picture():
    """Of another size, scaled as by hand; a chain ends there, too, and guidance follows the picture."""
    demo = Demo(make_conditioned_pipeline(), "tiny")
    assert demo.describe()["drawn"]["images"] == []
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    picture = Image.fromarray(noise.repeat(2, axis=0).repeat(2, axis=1)).resize((24, 24), Image.Resampling.NEAREST)
    given = picture.resize((8, 8), Image.Resampling.BICUBIC)
    url = to_data_url(picture.convert("RGB"))
    call = {"seed": 7, "num_inference_steps": 4, "guidance_scale": 3.0, "condition": url}
    result = demo.generate(quiet, num_images=2, **call)
    expected = demo.pipe(2, 4, [rng(7), rng(8)], condition=given, guidance_scale=3.0).images
    assert [pixels(image["png"]).tolist() for image in result["images"]] == [np.asarray(e).tolist() for e in expected]
    last = demo.chain(quiet, **call)["frames"][-1]["png"]
    assert pixels(last).tolist() == np.asarray(expected[0]).tolist()
    with pytest.raises(ValueError, match="draws from a picture: choose one"):
        demo.generate(quiet)


def test_a_small_condition_is_made_of_the_picture(gray):
    demo = Demo(make_conditioned_pipeline("low-resolution:2", 4), "tiny")
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:, 4:, 0] = 255
    given = demo._condition(to_data_url(Image.fromarray(halves)))
    expected = torch.tensor([[[0.0, 1], [0, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])[None]
    assert torch.equal(given, expected)
    # a smaller picture than the images is the condition itself, as for sample.py
    corners = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8)
    given = demo._condition(to_data_url(Image.fromarray(corners)))
    assert torch.equal((given[0] * 255).round().byte(), torch.from_numpy(corners).permute(2, 0, 1))
    with pytest.raises(ValueError, match="can't be read as a picture: not an image"):
        demo._condition("data:image/png;base64,AAAA")
    with pytest.raises(ValueError, match="doesn't draw from pictures"):
        gray.generate(quiet, condition=to_data_url(Image.fromarray(halves)))


def test_codes_are_those_of_the_pictures(gray):
    (image,) = gray.generate(quiet, num_images=1, num_inference_steps=4)["images"]
    assert gray.decode(image["codes"])["png"] == to_data_url(opened(image["png"]))


def test_a_student_draws_in_its_few_steps_and_completes_nothing():
    pipe = make_student_pipeline(5)
    demo = Demo(pipe, "tiny")
    described = demo.describe()
    assert described["solvers"] == {} and described["defaults"]["num_inference_steps"] == 1
    assert described["defaults"]["guidance_scale"] is None and not described["completes"]
    (image,) = demo.generate(quiet, "class 2", 1, 2, 2)["images"]
    assert pixels(image["png"]).tolist() == np.asarray(pipe(1, 2, rng(2), class_labels=2).images[0]).tolist()
    assert len(demo.chain(quiet, seed=2, num_inference_steps=2)["frames"]) == 3
    with pytest.raises(ValueError, match="from 1 to 2"):
        demo.generate(quiet, num_inference_steps=3)
    with pytest.raises(ValueError, match="has learned its guidance: leave out `guidance_scale`"):
        demo.generate(quiet, guidance_scale=2.5)


def test_texts_where_classes_are_words():
    pipe = make_words_pipeline()
    demo = Demo(pipe, "tiny")
    (image,) = demo.generate(quiet, "Red cat", 1, 2, 4, 3.0)["images"]
    expected = pipe(1, 4, rng(2), class_labels="cat red", guidance_scale=3.0).images[0]
    assert pixels(image["png"]).tolist() == np.asarray(expected).tolist() and image["class_name"] == "Red cat"
    with pytest.raises(ValueError, match="doesn't know 'fox'"):
        demo.generate(quiet, "red fox", 1, 2, 4, 3.0)


def test_examples_are_what_a_model_of_words_opens_with():
    pipe = make_words_pipeline(["Red cat", "blue dog", "dog", "cat"])
    described = Demo(pipe, "tiny").describe()
    names = [image["class_name"] for image in described["drawn"]["images"]]
    assert names == described["examples"] == ["Red cat", "blue dog", "dog", "cat"]
    steps = described["defaults"]["num_inference_steps"]
    expected = pipe(1, steps, rng(1), class_labels="blue dog").images[0]
    assert pixels(described["drawn"]["images"][1]["png"]).tolist() == np.asarray(expected).tolist()


def test_completions_by_a_word_are_those_of_its_class(classes):
    image = to_data_url(Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)))
    others = ("left half given", "class 3", 2, 5, 4, 2.0, 2)
    expected = [pixels(one["png"]) for one in classes.complete(quiet, image, *others)["images"]]
    words = Demo(make_words_pipeline(), "tiny")  # the same network
    result = words.complete(quiet, image, "left half given", "red", *others[2:])
    np.testing.assert_allclose([pixels(one["png"]) for one in result["images"]], expected, rtol=0, atol=1)


@pytest.mark.parametrize(("name", "labels"), [("class 1", [1, 1, 1]), ("any", [2, 3, 0])])
def test_class_and_guidance(classes, name, labels):
    result = classes.generate(quiet, name, 3, 2, 4, 3.0)
    generators = [rng(2), rng(3), rng(4)]
    expected = classes.pipe(3, 4, generators, class_labels=labels, guidance_scale=3.0).images
    assert [pixels(image["png"]).tolist() for image in result["images"]] == [np.asarray(e).tolist() for e in expected]
    assert [image["class_name"] for image in result["images"]] == [f"class {label}" for label in labels]


def test_no_class_is_the_null_class(classes):
    (image,) = classes.generate(quiet, "none", 1, 0, 4)["images"]
    z_0 = sample_latents(
        classes.pipe.unet,
        classes.pipe.scheduler,
        (1, 3, 3, 3),
        4,
        generator=[rng()],
        class_labels=torch.tensor([4]),
        solver="dpmsolver++",
    )
    assert pixels(image["png"]).tolist() == np.asarray(classes.pipe.decode_latents(z_0)[0]).tolist()


def test_defaults_come_from_the_models_files(gray, tmp_path):
    names = {0: "cat", 1: "dog", 2: "emu", 3: "fox"}
    pipe = DiffusionBridgeVQPipeline(
        **make_pipeline(5).components, id2label=names, default_guidance_scale=2.5, default_num_inference_steps=6
    )
    demo = Demo(pipe, "tiny")
    assert demo.classes == ["cat", "dog", "emu", "fox"]
    assert demo.defaults["guidance_scale"] == 2.5 and demo.defaults["num_inference_steps"] == 6
    drawn = demo.describe()["drawn"]
    assert drawn["settings"] == {"num_inference_steps": 6, "guidance_scale": 2.5, "solver": "dpmsolver++"}
    assert [image["class_name"] for image in drawn["images"]] == demo.classes
    assert gray.defaults["num_inference_steps"] == 20 and gray.defaults["guidance_scale"] is None


def test_chain_begins_with_noise_and_ends_with_the_picture(gray):
    frames = gray.chain(quiet, seed=3, num_inference_steps=6)["frames"]
    assert [frame["step"] for frame in frames] == [0, 1, 2, 3, 4, 5, 6]
    (picture,) = gray.generate(quiet, num_images=1, seed=3, num_inference_steps=6)["images"]
    assert frames[-1]["png"] == to_data_url(opened(picture["png"]))
    noise = torch.randn((1, 2, 4, 4), generator=rng(3)) * gray.pipe.scheduler.init_noise_sigma
    assert pixels(frames[0]["png"]).tolist() == np.asarray(gray.pipe.decode_latents(noise)[0]).tolist()


@pytest.mark.parametrize(("cls", "calls"), [(EulerDiscreteScheduler, 4), (HeunDiscreteScheduler, 7)])
def test_chain_of_a_scheduler_of_diffusers_ends_with_the_picture_too(cls, calls):
    """Heun calls the network more often than it is asked to, and both start from noise times a large sigma."""
    pipe = make_pipeline(z_star=[0.3, -0.2, 0.5])
    pipe.scheduler = pipe.scheduler.to_diffusers(cls)
    demo, seen = Demo(pipe, "tiny"), []
    call = {"seed": 3, "num_inference_steps": 4}
    (picture,) = demo.generate(lambda *step: seen.append(step), num_images=1, **call)["images"]
    frames = demo.chain(lambda *step: seen.append(step), **call)["frames"]
    assert [(frame["step"], frame["of"]) for frame in frames] == [(step, calls) for step in range(calls + 1)]
    assert seen == [(step, calls) for step in range(1, calls + 1)] * 2
    assert frames[-1]["png"] == to_data_url(opened(picture["png"]))
    noise = torch.randn((1, 3, 3, 3), generator=rng(3)) + torch.tensor([0.3, -0.2, 0.5]).reshape(1, 3, 1, 1)
    assert pixels(frames[0]["png"]).tolist() == np.asarray(pipe.decode_latents(noise)[0]).tolist()


def test_chain_of_one_step(gray):
    frames = gray.chain(quiet, num_inference_steps=1)["frames"]
    assert [(frame["step"], frame["of"]) for frame in frames] == [(0, 1), (1, 1)]


@pytest.mark.parametrize("name", ["none", "class 2"])
def test_completions_are_the_pipelines(classes, name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8))
    hidden = [[0, 0, 1], [0, 1, 1], [0, 0, 0]]
    result = classes.complete(quiet, to_data_url(image), hidden, name, 2, 5, 4, 2.0, 2)
    inpaint = DiffusionBridgeVQInpaintPipeline(classes.vqvae, classes.pipe.unet, classes.pipe.scheduler)
    mask = Image.fromarray(np.kron(hidden, np.full((2, 2), 255)).astype(np.uint8))
    guided = {} if name == "none" else {"class_labels": 2, "guidance_scale": 2.0}
    call = {"composite_strength": 1.0, "jump_n_sample": 2, **guided}
    expected = inpaint(image, mask, 4, 2, [rng(5), rng(6)], **call).images
    assert [pixels(c["png"]).tolist() for c in result["images"]] == [np.asarray(e).tolist() for e in expected]


def test_left_half_given_keeps_the_left_half(gray):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8))
    (completion,) = gray.complete(quiet, to_data_url(image), "left half given", "none", 1, 0, 3)["images"]
    same = pixels(completion["png"]) == np.asarray(image)
    assert same[:, :8].all() and same[:, 8:].mean() < 0.5


def test_encoded_and_decoded(gray):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8))
    encoded = gray.encode(to_data_url(image))
    pixels_in = torch.from_numpy(np.array(image))[None, None] / 127.5 - 1
    with torch.no_grad():
        codes = gray.vqvae.encode_codes(gray.vqvae.encode(pixels_in).latents)
    assert encoded["codes"] == codes[0].tolist() and encoded["png"] == to_data_url(image)
    assert gray.decode(encoded["codes"])["png"] == encoded["decoded"]


def test_palette_has_a_patch_for_each_code(gray):
    palette = gray.palette()
    codes = torch.full((1, 3, 3), 5)
    (alone,) = gray.pipe.decode_latents(gray.vqvae.decode_codes(codes))
    column, row = 5 % palette["columns"], 5 // palette["columns"]
    tile = pixels(palette["png"])[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    np.testing.assert_allclose(tile, np.asarray(alone)[4:8, 4:8], rtol=0, atol=1)  # another batch rounds otherwise


def test_files_are_named_and_carry_their_settings(classes):
    image = classes.generate(quiet, "class 1", 1, 12, 4, 2.0)["images"][0]
    assert image["file_name"] == "tiny_class-1_seed12.png"
    settings = json.loads(opened(image["png"]).text["settings"])
    assert settings == {
        "model": "tiny",
        "class_name": "class 1",
        "seed": 12,
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "solver": "dpmsolver++",
    }


def test_steps_are_reported(gray):
    seen = []
    gray.generate(lambda *step: seen.append(step), num_images=2, num_inference_steps=3)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    image = to_data_url(Image.new("L", (16, 16)))
    gray.complete(lambda *step: seen.append(step), image, "center hidden", "none", 1, 0, 4, None, 2)
    assert seen == [(i, 8) for i in range(1, 9)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_images": 2.5}, r"Number of pictures \(`num_images`\) must be a whole number from 1 to 64, got 2.5"),
        ({"num_images": "abc"}, "must be a whole number from 1 to 64, got 'abc'"),
        ({"num_images": True}, "got True"),
        ({"seed": -1}, r"Seed \(`seed`\) must be a whole number from 0 to 2000000000, got -1"),
        ({"seed": float("nan")}, "got nan"),
        ({"num_inference_steps": 21}, r"Steps \(`num_inference_steps`\) must be a whole number from 1 to 20, got 21"),
        ({"guidance_scale": 2.0}, "no classes: leave out `guidance_scale`"),
        ({"solver": "euler"}, "must be one of dpmsolver[+][+], ddim, ancestral, got 'euler'"),
        ({"class_name": "cat"}, "must be one of any, none, got 'cat'"),
    ],
)
def test_what_is_wrong_is_named(gray, call, message):
    with pytest.raises(ValueError, match=message):
        gray.generate(quiet, **call)


@pytest.mark.parametrize(
    ("codes", "message"), [([[16] * 4] * 4, "from 0 to 15"), ([[0] * 3] * 4, "4 lists of 4"), ("no", "4 lists of 4")]
)
def test_codes_are_checked(gray, codes, message):
    with pytest.raises(ValueError, match=message):
        gray.decode(codes)


@pytest.mark.parametrize(
    ("source", "name"),
    [("checkpoints/digits", "digits"), ("/home/me/outputs/demo/pipeline", "demo"), ("user/model", "model")],
)
def test_name_of_a_model(source, name):
    assert model_name(source) == name


def test_names_of_files_are_plain():
    assert file_name(["a/b", "great white", "seed3"]) == "a-b_great-white_seed3.png"
