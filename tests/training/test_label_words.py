"""Runs on texts, each of whose words is a class."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from tiny_run import assert_same_state, config, stopped_at_a_checkpoint

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.data.tables import read_labels
from diffusion_bridge_vq.pipelines import save_components
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, data, train
from diffusion_bridge_vq.training.data import (
    check_class_names,
    find_classes,
    make_label_table,
    model_inputs,
    open_images,
)

SHORT = {"batch_size": 4, "max_train_steps": 2, "checkpoint_every": 0, "class_conditional": True, "label_words": True}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """The validation images have a combination and a word that no other has."""
    folder = tmp_path_factory.mktemp("photos")
    for split, names in (("train", ("red cat", "Blue dog")), ("validation", ("blue cat", "green fox"))):
        for number, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (8, 8), 40 * number + i).save(folder / split / name / f"{i}.png")
    return str(folder)


def test_labels_become_vectors_of_their_words(photos, tmp_path):
    run = config(E2EConfig, tmp_path, dataset=photos, **SHORT)
    images = open_images(run)
    number, words = find_classes(run, images)
    assert (number, words) == (4, ["blue", "cat", "dog", "red"])
    table = make_label_table(run, images, words)
    labels = images.labels.unique()  # of the four classes of both splits
    found = model_inputs({"labels": labels}, label_table=table)["class_labels"]
    names = [[words[k] for k in row.nonzero().flatten()] for row in found]
    assert sorted(names) == [["blue", "dog"], ["cat", "red"]]


def test_from_a_run_to_calls_by_words(photos, tmp_path):
    """Validation takes texts that training hasn't seen; unknown words are left out there, and refused in calls."""
    components = train(config(E2EConfig, tmp_path, dataset=photos, validation_split="validation", **SHORT))
    run = RunFolder(tmp_path)
    assert run.read_id2label() == {0: "blue", 1: "cat", 2: "dog", 3: "red"}
    assert any("validation/prior" in line for line in run.read_metrics())
    assert run.read_config()["label_examples"] == ["Blue dog", "red cat"]  # no text of the validation images
    save_components(components, run, **run.read_pipeline_settings())
    pipe = DiffusionBridgeVQPipeline.from_pretrained(run.pipeline)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.label_words and pipe.label_examples == ["Blue dog", "red cat"]

    def draw(labels):
        generator = torch.Generator().manual_seed(0)
        return pipe(1, 2, generator, "latent", class_labels=labels, guidance_scale=3.0).images

    blue_cat = draw("blue cat")
    assert torch.equal(blue_cat, draw(["Cat; BLUE"])) and not torch.equal(blue_cat, draw("blue"))
    torch.testing.assert_close(draw("blue"), draw(0))
    assert pipe(class_labels=["blue", "red cat"], num_inference_steps=2, output_type="pt").images.shape[0] == 2
    with pytest.raises(ValueError, match="doesn't know 'green'"):
        draw("green cat")
    with pytest.raises(ValueError, match=r"must have words, got '-'; leave them out"):
        draw("-")
    with pytest.raises(ValueError, match=r"1 texts or one, or numbers of words in 0\.\.3"):
        draw(4)


def test_a_resumed_run_of_words_ends_bit_for_bit_where_the_whole_one_does(photos, tmp_path, monkeypatch):
    options = {"dataset": photos, **SHORT, "max_train_steps": 4, "checkpoint_every": 2}
    train(config(E2EConfig, tmp_path / "whole", **options))
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(E2EConfig, tmp_path / "parts", **options))
    train(config(E2EConfig, tmp_path / "parts", resume=True, **options))
    assert_same_state(tmp_path / "parts", tmp_path / "whole", 4, ("model", "ema", "optimizer"))


def test_names_that_a_pipeline_cannot_hold_are_refused_before_training(photos, tmp_path, monkeypatch):
    check_class_names(["cat"] * 10_000)
    with pytest.raises(ValueError, match=r"names of the 60,000 classes take 1,.* at most 1,048,576: name a"):
        check_class_names([f"word{number}" for number in range(60_000)])
    monkeypatch.setattr(data, "MAX_JSON_BYTES", 2**14)
    with pytest.raises(ValueError, match="names of the 4 classes take"):
        train(config(E2EConfig, tmp_path / "run", dataset=photos, **SHORT))
    assert not (tmp_path / "run").exists()


def test_words_need_classes_and_names():
    with pytest.raises(ValueError, match="give `class_conditional`, too"):
        E2EConfig.from_preset("digits", label_words=True)
    with pytest.raises(ValueError, match="Evaluation draws classes one by one"):
        E2EConfig.from_preset(
            "digits", label_words=True, class_conditional=True, evaluate_every=5, validation_split="test"
        )


def test_several_columns_are_joined():
    features = Features({"name": Value("string"), "style": ClassLabel(names=["noto", "twemoji"])})
    rows = {"name": ["CAT", "DOG", "CAT", "CAT"], "style": [1, 0, 0, 1]}
    labels, names = read_labels(Dataset.from_dict(rows, features=features), "name, style")
    assert [names[i] for i in labels] == ["CAT, twemoji", "DOG, noto", "CAT, noto", "CAT, twemoji"]
    assert len(names) == 3
    with pytest.raises(ValueError, match="there is no label_column 'title'"):
        read_labels(Dataset.from_dict(rows, features=features), "title,style")
