"""Names of classes and defaults of calls: saved with a pipeline, loaded with it, and taken by its calls."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_models import STEPS, make_pipeline, rng

from diffusion_bridge_vq import (
    DiffusionBridgeVQInpaintPipeline,
    DiffusionBridgeVQPipeline,
    PixelCNNPrior,
    PixelCNNVQPipeline,
)
from diffusion_bridge_vq.hub.code import carried_files
from diffusion_bridge_vq.pipelines import build_pipeline, load_pipeline, save_components
from diffusion_bridge_vq.run_folder import RunFolder

NAMES = {0: "ship", 1: "horse", 2: "cat"}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_named(**settings) -> DiffusionBridgeVQPipeline:
    return quiet(DiffusionBridgeVQPipeline(**make_pipeline(classes=4).components, **{"id2label": NAMES} | settings))


def make_pixelcnn(**settings) -> PixelCNNVQPipeline:
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3, num_class_embeds=4).eval()
    torch.nn.init.normal_(prior.head[-1].weight)  # so that classes matter
    for layer in prior.layers:
        torch.nn.init.normal_(layer.classes.weight)
    return quiet(PixelCNNVQPipeline(make_pipeline().vqvae, prior, **{"id2label": NAMES} | settings))


def run(pipe, *args, **kwargs) -> torch.Tensor:
    steps = {} if isinstance(pipe, PixelCNNVQPipeline) else {"num_inference_steps": STEPS}
    return pipe(*args, generator=rng(), output_type="latent", **steps | kwargs).images


@pytest.fixture(params=["bridge", "pixelcnn"])
def pipe(request):
    return make_named() if request.param == "bridge" else make_pixelcnn()


def test_names_are_the_numbers_they_stand_for(pipe):
    expected = run(pipe, class_labels=[2, 0])
    for labels in (["cat", "ship"], ("cat", "ship"), ["cat", 0], torch.tensor([2, 0]).numpy()):
        assert torch.equal(run(pipe, class_labels=labels), expected)
    assert torch.equal(run(pipe, class_labels="cat", batch_size=2), run(pipe, class_labels=[2, 2]))
    assert not torch.equal(expected, run(pipe, class_labels=[1, 1]))


def test_the_number_of_labels_is_the_number_of_images(pipe):
    assert len(run(pipe, class_labels=[0, 1, 2])) == 3
    assert len(run(pipe, class_labels=torch.tensor([0, 1, 2]))) == 3
    assert len(run(pipe, class_labels="ship")) == len(run(pipe)) == len(run(pipe, class_labels=[1])) == 1
    with pytest.raises(ValueError, match="4 integers or one, or names of classes, got 3"):
        run(pipe, class_labels=[0, 1, 2], batch_size=4)


def test_completing_images_takes_names():
    pipe = quiet(DiffusionBridgeVQInpaintPipeline.from_pipe(make_named()))
    image, mask = torch.rand(2, 3, 6, 6), torch.ones(6, 6)
    assert torch.equal(
        run(pipe, image, mask, class_labels=["cat", "ship"]), run(pipe, image, mask, class_labels=[2, 0])
    )


def test_get_label_ids(pipe):
    assert pipe.get_label_ids(["cat", "ship", "cat"]) == [2, 0, 2]
    assert pipe.get_label_ids("horse") == [1]
    assert pipe.id2label == NAMES
    with pytest.raises(ValueError, match="no class 'dog'; the classes are ship, horse, cat"):
        pipe.get_label_ids(["ship", "dog"])


@pytest.mark.parametrize("labels", ["dog", ["ship", "dog"], ["ship", None], [[0, 1]], [True], 1.0, [float("nan")]])
def test_labels_that_are_neither_numbers_nor_names(pipe, labels):
    with pytest.raises(ValueError, match=r"no class 'dog'|integers or one, or names"):
        run(pipe, class_labels=labels, batch_size=2)


def test_names_for_a_pipeline_without_them():
    pipe = make_named(id2label=None)
    for call in (lambda: run(pipe, class_labels="cat"), lambda: pipe.get_label_ids("cat")):
        with pytest.raises(ValueError, match="no class names, got 'cat': give the numbers"):
            call()
    with pytest.raises(ValueError, match="has no classes"):
        run(make_pipeline(), class_labels="cat")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "a", 1: "b"}, r"each of the classes 0\.\.2 once, got 2"),
        ({0: "a", 1: "b", 3: "c"}, r"each of the classes 0\.\.2 once"),
        ({0: "a", "0": "b", 1: "c"}, r"each of the classes 0\.\.2 once"),
        ({0: "a", 1: "b", 2: ""}, "a name for class 2, got ''"),
        ({0: "a", 1: "b", 2: 7}, "a name for class 2, got 7"),
        ({0: "a", 1: "b", 2: "a"}, "different names"),
        (["a", "b", "c"], "must be a dict"),
        ({}, "each of the classes"),
    ],
)
def test_names_that_do_not_fit_the_classes(names, message):
    for make in (make_named, make_pixelcnn):
        with pytest.raises(ValueError, match=message):
            make(id2label=names)


def test_names_for_a_network_without_classes():
    parts = make_pipeline().components
    for setting in ({"id2label": NAMES}, {"default_guidance_scale": 2.0}):
        with pytest.raises(ValueError, match="the network has none"):
            DiffusionBridgeVQPipeline(**parts, **setting)


def test_defaults_are_those_of_the_calls_without_them():
    pipe = make_named(default_guidance_scale=3.0, default_num_inference_steps=5)
    noise = {"latents": torch.randn(2, 3, 3, 3), "output_type": "latent"}
    given = pipe(2, 5, class_labels=[0, 1], guidance_scale=3.0, **noise).images
    assert torch.equal(pipe(2, class_labels=[0, 1], **noise).images, given)
    assert pipe.num_timesteps == 5
    assert not torch.equal(pipe(2, class_labels=[0, 1], guidance_scale=1.0, **noise).images, given)
    unconditional = pipe(2, **noise).images  # nothing to guide to
    assert torch.equal(unconditional, make_named()(2, 5, **noise).images)


@pytest.mark.parametrize(
    "setting",
    [
        {"default_guidance_scale": float("nan")},
        {"default_guidance_scale": "2"},
        {"default_num_inference_steps": 0},
        {"default_num_inference_steps": 21},
        {"default_num_inference_steps": 2.5},
    ],
)
def test_defaults_that_no_call_could_take(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        make_named(**setting)


SETTINGS = {"id2label": NAMES, "default_guidance_scale": 2.0, "default_num_inference_steps": 7}


def check_settings(pipe) -> None:
    assert pipe.id2label == NAMES
    assert (pipe.config.default_guidance_scale, pipe.config.default_num_inference_steps) == (2.0, 7)


def test_saved_and_loaded(tmp_path):
    pipe = make_named(**SETTINGS)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["id2label"] == {"0": "ship", "1": "horse", "2": "cat"}
    for loaded in (
        DiffusionBridgeVQPipeline.from_pretrained(tmp_path),
        DiffusionBridgeVQInpaintPipeline.from_pretrained(tmp_path),
        load_pipeline(tmp_path),
    ):
        check_settings(loaded)
    assert set(loaded.components) == {"vqvae", "unet", "scheduler"}
    check_settings(DiffusionBridgeVQInpaintPipeline.from_pipe(loaded))
    assert torch.equal(run(quiet(loaded), class_labels="cat"), run(pipe, class_labels="cat"))
    other = DiffusionBridgeVQPipeline.from_pretrained(tmp_path, id2label={0: "x", 1: "y", 2: "z"})
    assert other.get_label_ids("y") == [1]


def test_pixelcnn_saved_and_loaded(tmp_path):
    make_pixelcnn().save_pretrained(tmp_path)
    assert PixelCNNVQPipeline.from_pretrained(tmp_path).id2label == NAMES
    assert load_pipeline(tmp_path).get_label_ids("cat") == [2]


def test_nothing_is_saved_of_what_is_not_given(tmp_path):
    """So that older versions, which know no such settings, load the folder."""
    make_pipeline(classes=4).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {name for name in index if not name.startswith("_")} == {"vqvae", "unet", "scheduler"}


@pytest.mark.usefixtures("own_modules")
def test_the_stock_loader_with_the_code_of_a_repository(tmp_path):
    """diffusers' own `from_pretrained`, as people without the package call it."""
    pipe = make_named(**SETTINGS)
    pipe.save_pretrained(tmp_path)
    parts = {name: (type(part).__module__, type(part).__name__) for name, part in pipe.components.items()}
    for path, text in carried_files(type(pipe), parts, "user/model").items():
        (tmp_path / path).write_text(text)
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(tmp_path / "pipeline.py"), trust_remote_code=True
    )
    assert type(loaded) is not DiffusionBridgeVQPipeline
    check_settings(loaded)
    assert torch.equal(run(quiet(loaded), class_labels=["cat", 0]), run(pipe, class_labels=[2, 0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "ship"}}, "each of the classes"),
        ({"id2label": [["a", "b"]]}, "must be a dict"),
        ({"id2label": {"0": "ship", "1": "horse", "2": None}}, "a name for class 2"),
        ({"default_guidance_scale": "high"}, "default_guidance_scale"),
        ({"label_words": "yes"}, "`label_words` must be True, False or None, got 'yes'"),
        ({"label_examples": {"0": "cat"}}, "for a model whose classes are words: leave them out"),
        ({"label_words": True, "id2label": None, "label_examples": {"0": "cat"}}, "`label_words` needs `id2label`"),
        ({"label_words": "yes", "id2label": None, "label_examples": {"0": "cat"}}, "`label_words` must be True"),
        ({"label_words": True, "label_examples": ["cat"]}, r"must be a dict from number to text, .* got \['cat'\]"),
        ({"label_words": True, "label_examples": {}}, "of different texts"),
        ({"label_words": True, "label_examples": {"0": "cat", "1": "-"}}, "of different texts"),
        ({"label_words": True, "label_examples": {"0": "cat", "1": "cat"}}, "of different texts"),
        ({"label_words": True, "label_examples": {"0": "cat", "1": 2}}, "of different texts"),
        ({"label_words": True, "label_examples": {"0": "red cat"}}, "don't fit .* doesn't know 'red'"),
        ({"default_num_inference_steps": 1e9}, "default_num_inference_steps"),
        ({"labels": NAMES}, "model_index.json has .'labels'."),
    ],
)
def test_settings_of_a_folder_that_do_not_fit(tmp_path, change, message):
    make_named().save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        DiffusionBridgeVQPipeline.from_pretrained(tmp_path)


def test_names_of_a_run_are_saved_with_its_pipeline(tmp_path):
    parts = make_pipeline(classes=4).components
    assert build_pipeline(parts, NAMES).get_label_ids("horse") == [1]
    with pytest.raises(ValueError, match=r"No pipeline has the components vqvae; expected .*unet, vqvae"):
        build_pipeline({"vqvae": parts["vqvae"]})
    save_components(parts, RunFolder(tmp_path), id2label=NAMES)
    assert load_pipeline(RunFolder(tmp_path).pipeline).id2label == NAMES
