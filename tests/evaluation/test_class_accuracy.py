"""The classifier against scikit-learn, and the metric on images whose classes are known."""

import pytest
import torch
from diffusers import UNet2DModel
from few_examples import FEW
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    EvaluationConfig,
    ModelOutputs,
    RealImages,
    SampleStore,
    evaluate_pipelines,
    read_results,
    real_images,
    run_metrics,
    train_classifier,
)
from diffusion_bridge_vq.evaluation.class_accuracy import _PENALTY
from diffusion_bridge_vq.evaluation.model_outputs import spread_classes

SHADES = {"black": 20, "gray": 120, "white": 220}


def test_the_classifier_is_scikit_learns():
    """The same penalized loss: C = 1 / (2 n penalty), since there the penalty is half the sum of squares."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = torch.randn(300, 5, generator=generator) * torch.logspace(-2, 2, 5)
    features[:, 0] += 0.01 * labels
    features[:, 4] -= 100.0 * (labels == 2)
    classifier = train_classifier(features, labels, 3)
    rows = (features - features.mean(dim=0)) / features.std(dim=0)
    theirs = LogisticRegression(C=1 / (2 * 300 * _PENALTY), tol=1e-8, max_iter=1000).fit(rows.numpy(), labels.numpy())
    assert classifier.weight.T.numpy() == pytest.approx(theirs.coef_, abs=1e-3)
    assert (classifier(features).numpy() == theirs.predict(rows.numpy())).all()
    again = train_classifier(features, labels, 3)
    assert all(torch.equal(one, two) for one, two in zip(classifier, again, strict=True))


@pytest.fixture
def shades(tmp_path):
    """
    Splits of noisy 16 x 16 images of three shades, 10 of each class. The test split has no black ones and numbers the
    other two from 0, as a table that is read by itself.
    """
    generator = torch.Generator().manual_seed(0)
    for split, names in (("train", SHADES), ("test", ("gray", "white"))):
        for name in names:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(10):
                pixels = (SHADES[name] + 10 * torch.randn(16, 16, generator=generator)).clamp(0, 255).byte()
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    train, test = (
        load_images(str(tmp_path / "data"), resolution=16, channels=1, split=split) for split in ("train", "test")
    )
    test.labels, test.class_names = test.labels - 1, ["gray", "white"]
    return train, test


@pytest.fixture
def real(shades, monkeypatch, tmp_path):
    def quarters(images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)

    monkeypatch.setattr(real_images, "load_extractor", lambda name, device: quarters)
    return RealImages("shades", *shades, 12, "quarters", "cpu", tmp_path / "features")


def conditional_pipeline(id2label=None) -> DiffusionBridgeVQPipeline:
    pipe = make_gray_pipeline()
    unet = UNet2DModel.from_config(pipe.unet.config, num_class_embeds=4).eval()
    return DiffusionBridgeVQPipeline(pipe.vqvae, unet, pipe.scheduler, id2label=id2label)


def shaded(*names: str) -> torch.Tensor:
    return torch.stack([torch.full((1, 16, 16), SHADES[name], dtype=torch.uint8) for name in names])


def outputs_of(pipe, real, folder, **settings) -> ModelOutputs:
    config = EvaluationConfig(num_inference_steps=2, **settings)
    return ModelOutputs("bridge", pipe, real, SampleStore(folder / "figures.safetensors"), config)


def figures(folder) -> dict:
    return {r["name"]: r for r in read_results(folder / "results.json")}


def test_figures_of_known_images(real, tmp_path):
    """
    12 test images, gray and white in turn by class. Of the reconstructions a third have become black. Samples are
    drawn for black, gray, white in turn, and 3 of 12 show something else.
    """
    outputs = outputs_of(conditional_pipeline(), real, tmp_path, guidance_scale=1.0)
    assert real.test_labels.tolist() == [1] * 6 + [2] * 6  # numbers of the train split
    outputs.reconstructions = torch.cat([shaded(*["black"] * 4), real.test[4:]])
    samples = ["black", "gray", "white"] * 4
    samples[0], samples[4], samples[5] = "white", "black", "black"
    outputs.samples = shaded(*samples)
    run_metrics(("class_accuracy",), outputs, tmp_path)
    found = figures(tmp_path)
    assert found["class_accuracy_test"]["value"] == 1.0
    assert found["class_accuracy_test"]["by_class"] == {"gray": 1.0, "white": 1.0}
    assert found["class_accuracy_reconstructions"]["value"] == pytest.approx(8 / 12)
    assert found["class_accuracy"]["value"] == found["class_accuracy_ratio"]["value"] == pytest.approx(9 / 12)
    assert found["class_accuracy"]["by_class"] == {"black": 0.75, "gray": 0.75, "white": 0.75}
    low, high = found["class_accuracy"]["interval"]
    assert low == pytest.approx(0.468, abs=1e-3) and high == pytest.approx(0.911, abs=1e-3)  # Wilson's
    facts = {name: found["class_accuracy"][name] for name in ("n", "extractor", "guidance_scale", "train_images")}
    assert facts == {"n": 12, "extractor": "quarters", "guidance_scale": 1.0, "train_images": 10_000}


def test_the_balanced_accuracy_is_scikit_learns(real, tmp_path):
    """9 gray and 3 white test images; 4 gray and 1 white ones are taken for the other."""
    outputs = outputs_of(make_gray_pipeline(), real, tmp_path)
    real.test_labels = torch.tensor([1] * 9 + [2] * 3)
    read = [2] * 4 + [1] * 5 + [2] * 2 + [1]
    outputs.reconstructions = shaded(*[list(SHADES)[number] for number in read])
    run_metrics(("class_accuracy",), outputs, tmp_path)
    found = figures(tmp_path)["class_accuracy_reconstructions"]
    assert found["balanced"] == pytest.approx(balanced_accuracy_score(real.test_labels, read)) != found["value"]


def test_classes_are_found_by_name(real, tmp_path):
    """A model that numbers the classes in another order."""
    pipe = conditional_pipeline({0: "white", 1: "black", 2: "gray"})
    outputs = outputs_of(pipe, real, tmp_path, guidance_scale=1.0)
    outputs.samples = shaded(*["white", "black", "gray"] * 4)
    run_metrics(("class_accuracy",), outputs, tmp_path)
    assert figures(tmp_path)["class_accuracy"]["value"] == 1.0


@settings(FEW, max_examples=100)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(0, 80))
def test_samples_have_the_classes_of_the_training_images(counts, number):
    """After any number of samples no class is more than two samples away from its share; absent ones aren't drawn."""
    classes = spread_classes(counts, number)
    drawn = classes.bincount(minlength=len(counts))
    shares = torch.tensor(counts) * number / sum(counts)
    assert len(classes) == number and (drawn - shares).abs().max() < 2
    assert all(drawn[k] == 0 for k, count in enumerate(counts) if count == 0)
    equal = spread_classes([7] * len(counts), number)
    assert equal.tolist() == [i % len(counts) for i in range(number)]


def test_a_rare_class_is_drawn_rarely(shades, real, tmp_path, monkeypatch):
    """Labels say 15 black, 12 gray and 3 white images; a model with another order, and one with other classes."""
    train, test = shades
    train.labels = torch.tensor([0] * 15 + [1] * 12 + [2] * 3)
    few = RealImages("shades", train, test, 12, "quarters", "cpu")
    assert few.class_counts == [15, 12, 3]
    pipe = conditional_pipeline({0: "white", 1: "black", 2: "gray"})
    outputs = outputs_of(pipe, few, tmp_path, guidance_scale=1.0)
    assert outputs.sample_labels.bincount().tolist() == [6, 5, 1]  # of 12, black first: in the data set's numbers
    draw, seen = outputs.prior.draw_codes, []
    monkeypatch.setattr(outputs.prior, "draw_codes", lambda g, labels: seen.extend(labels) or draw(g, labels))
    outputs.sampled_codes(12)
    assert [seen.count(k) for k in range(3)] == [1, 6, 5]  # in the model's numbers
    balanced = outputs_of(pipe, real, tmp_path, guidance_scale=1.0)
    assert balanced._draws_key != outputs._draws_key  # stored draws of the one aren't taken for the other's
    assert "classes" in outputs.sampling_facts and "classes" not in balanced.sampling_facts  # nor are its figures
    strange = outputs_of(conditional_pipeline({0: "a", 1: "b", 2: "c"}), few, tmp_path, guidance_scale=1.0)
    assert strange._class_counts == [1, 1, 1]


def test_other_classes_than_the_models_are_refused(real, tmp_path):
    pipe = conditional_pipeline({0: "white", 1: "black", 2: "red"})
    with pytest.raises(ValueError, match="classes white, black, red, and the data set black, gray, white"):
        run_metrics(("class_accuracy",), outputs_of(pipe, real, tmp_path, guidance_scale=1.0), tmp_path)
    pipe.unet = UNet2DModel.from_config(pipe.unet.config, num_class_embeds=6).eval()
    pipe.register_to_config(id2label=None)
    with pytest.raises(ValueError, match="bridge has the classes 5, and the data set"):
        run_metrics(("class_accuracy",), outputs_of(pipe, real, tmp_path, guidance_scale=1.0), tmp_path)


def test_samples_without_classes_have_no_accuracy(real, tmp_path):
    """Of a model without classes, and of an autoencoder alone."""
    for number, model in enumerate((make_gray_pipeline(), make_gray_pipeline().vqvae)):
        folder = tmp_path / str(number)
        folder.mkdir()
        run_metrics(("class_accuracy",), outputs_of(model, real, folder), folder)
        assert figures(folder).keys() == {"class_accuracy_test", "class_accuracy_reconstructions"}


def test_features_of_training_images_are_kept(real, tmp_path):
    """Another evaluation of the same images finds them; a damaged file is named."""
    images = real.training_set(100).images
    assert len(images) == 30
    features, calls = real.training_features(images), []
    (stored,) = (tmp_path / "features").iterdir()
    other = RealImages("shades", real._train_split, real._train_split, 5, "quarters", "cpu", tmp_path / "features")
    other.extractor = calls.append
    assert torch.equal(other.training_features(images), features) and not calls
    for damage in (lambda: stored.write_bytes(b"x"), lambda: save_file({"features": features[:3]}, stored)):
        damage()
        with pytest.raises(ValueError, match=r"quarters-\w+\.safetensors .*remove it"):
            other.training_features(images)


def test_a_test_class_that_nothing_is_trained_on(shades):
    train, test = shades
    with pytest.raises(ValueError, match="classes that the train split lacks: black"):
        RealImages("shades", test, train, 5, "quarters", "cpu")


def test_without_labels_it_is_skipped(tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (16, 16), 50 * number).save(tmp_path / "data" / split / f"{number}.png")
    make_gray_pipeline().save_pretrained(tmp_path / "pipeline")
    settings = EvaluationConfig(num_images=4)
    folders = {"bridge": tmp_path / "pipeline"}
    evaluate_pipelines(folders, str(tmp_path / "data"), tmp_path / "out", settings, ("class_accuracy",))
    assert "class_accuracy: skipped, there are no labels" in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (torch.tensor([0, 1, 0]), 2, "one entry per row, 4, got 3"),
        (torch.tensor([0, 1, 0, 2]), 2, r"in 0\.\.1, got 0\.\.2"),
        (torch.tensor([0, 1, 0, 1]), 3, "3 classes needs a training image, but 2 have one"),
        (torch.tensor([0, 0, 0, 0]), 1, "`num_classes` must be at least 2"),
    ],
)
def test_training_sets_that_are_refused(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(torch.randn(4, 3), labels, classes)
