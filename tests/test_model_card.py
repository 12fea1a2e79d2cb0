"""Model cards: what they say is what the run's files say, and their snippets run."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from tiny_models import (
    SKEWED,
    make_gray_pipeline,
    make_pipeline,
    make_student_pipeline,
    make_unet,
    make_words_pipeline,
)

from diffusion_bridge_vq import (
    DiffusionBridgeVQInpaintPipeline,
    DiffusionBridgeVQPipeline,
    GumbelVQModel,
    PixelCNNPrior,
    PixelCNNVQPipeline,
)
from diffusion_bridge_vq.evaluation import append_result
from diffusion_bridge_vq.model_card import make_model_card, read_run
from diffusion_bridge_vq.models import find_vocabulary

CARDS = Path(__file__).parents[1] / "model_cards"
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def run(tmp_path) -> Path:
    make_pipeline(**SKEWED | {"num_train_timesteps": 50}).save_pretrained(tmp_path / "pipeline")
    settings = {"preset": "digits", "dataset": "user/faces", "split": "train", "resolution": 6, "batch_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"max_train_steps": 12, "mixed_precision": "bf16"}))
    lines = [{"step": 10, "loss/prior": 0.5, "codebook/usage": 0.75}, {"step": 12, "loss/prior": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "evaluation").mkdir()
    return tmp_path


def measure(run: Path, name: str, value, **facts) -> None:
    path = run / "evaluation" / "results.json"
    append_result(path, name, value, **{"n": 9, "seed": 2, "dataset": "faces", "model": "e2e"} | facts)


def test_names_of_classes_that_look_like_paths_stay_apart(tmp_path):
    """Two of them became "PATH", and such a repository doesn't load."""
    pipe, names = make_pipeline(classes=3), {0: "/r/cats", 1: "/r/dogs"}
    DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, pipe.scheduler, names).save_pretrained(tmp_path)
    assert read_run(tmp_path).index["id2label"] == {"0": "/r/cats", "1": "/r/dogs"}


def test_examples_of_labels_that_are_private_are_left_out(tmp_path):
    pipe = make_words_pipeline()
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["label_examples"] = {"0": "password=hunter2", "1": "red cat", "2": "/home/ada/x.png"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert read_run(tmp_path).index["label_examples"] == {"0": "red cat"}


# ------------------------------------------------------------------------------------------ the cards in model_cards


@pytest.mark.parametrize("path", sorted(set(CARDS.glob("*.md")) - {CARDS / "template.md"}), ids=lambda path: path.stem)
def test_written_cards(path, tmp_path, monkeypatch):
    card = ModelCard.load(path)
    assert card.data.library_name == "diffusion-bridge-vq"  # the Hub's snippet for diffusers wouldn't work
    assert card.data.pipeline_tag == "unconditional-image-generation" and card.data.license == "apache-2.0"
    assert ModelCard(f"---\n{card.data.to_yaml()}\n---\n{card.text}").data.to_dict() == card.data.to_dict()
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text):
        assert (CARDS / link).is_file(), link
    (snippet,) = SNIPPET.findall(card.text)
    monkeypatch.chdir(tmp_path)
    pipe = make_gray_pipeline()
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, num_train_timesteps=50)
    words = find_vocabulary(re.findall(r"pipe\(\[(.*)\]\)", snippet))
    if words:
        unet = make_unet(sample_size=4, in_channels=2, out_channels=2, num_class_embeds=len(words) + 1)
        names = dict(enumerate(words))
        pipe = type(pipe)(pipe.vqvae, unet, pipe.scheduler, id2label=names, label_words=True)
    (folder,) = re.findall(r'from_pretrained\("((?:outputs|checkpoints)/[^"]+)"\)', snippet)
    pipe.save_pretrained(folder)
    names: dict = {}
    exec(snippet, names)
    assert len(names["images"]) == (2 if words else 16) and names["images"][0].size == (16, 16)


def test_template_is_in_the_package():
    assert (CARDS / "template.md").samefile(
        Path(make_model_card.__globals__["__file__"]).parent / "model_card_template.md"
    )


# ------------------------------------------------------------------------------------------------- made from runs


def test_what_it_says(run):
    measure(run, "frechet", 40.0, reference="test images", extractor="inception", step=10)  # before the end
    measure(run, "frechet", 30.0, reference="test images", extractor="inception", step=12)
    measure(run, "psnr", 10.0, std=2.0)
    measure(run, "psnr", 20.0, std=4.0)  # measured again
    measure(run, "kl", [1.0, 2.0])  # no number
    card = make_model_card(run, "user/model", license="mit", samples="samples.png")
    data = ModelCard(str(card)).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.datasets, data.model_name) == ("mit", ["user/faces"], "model")
    assert data.metrics == ["fid", "psnr"]
    assert data.eval_results == card.data.eval_results
    frechet, psnr = data.eval_results
    assert (frechet.metric_type, frechet.metric_value, frechet.metric_args["extractor"]) == ("fid", 30.0, "inception")
    assert (psnr.metric_type, psnr.metric_value, psnr.metric_args["std"]) == ("psnr", 20.0, 4.0)
    saved = json.loads((run / "evaluation" / "results.json").read_text())["results"]
    for found in (frechet, psnr):
        recorded = next(r for r in reversed(saved) if r["value"] == found.metric_value)
        facts = {key: recorded[key] for key in recorded if key not in ("name", "value", "dataset", "command")}
        assert found.metric_args == facts  # n, seed, device, versions and time among them

    text = card.text
    assert "| fid | 30 | 9 | test images | inception |  |  | 2 | CPU" in text and "| psnr | 20 (4) |" in text
    assert "loss/prior 0.25 (step 12)" in text and "codebook/usage 0.75 (step 10)" in text
    assert "12 steps, batch 4 per process." in text and "| mixed_precision | bf16 |" in text
    assert "![Samples, unselected](samples.png)" in text
    assert "6x6 RGB -> 3x3 positions, 3 channels, 32 codes" in text
    assert "No FID" not in text
    unet = make_pipeline().unet
    numbers = sum(p.numel() for p in unet.state_dict().values())
    assert f"`UNet2DModel`, {numbers / 1e6:.2g}M" in text


def test_what_is_not_recorded_is_left_out(run):
    card = make_model_card(run / "pipeline", "user/model")
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "## Training" not in card.text and "Cost" not in card.text and "![" not in card.text
    assert "Nothing has been measured" in card.text and "No FID is claimed" in card.text
    assert "None" not in card.text and "custom_pipeline" not in card.text
    assert "custom_pipeline" in make_model_card(run / "pipeline", "user/model", carries_code=True).text
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"machine": {"device": "a GPU", "processes": 2}}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 14, "train/seconds": 61.2}) + "\n")
    assert "14 steps, batch 4 per process, 61 s" in make_model_card(run, "user/model").text
    assert "device a GPU, processes 2." in make_model_card(run, "user/model").text


def test_names_what_the_autoencoder_was_trained_against(run):
    settings = json.loads((run / "config.json").read_text())
    for weight, shown in ((0.0, False), (0.5, True)):
        more = {"perceptual_weight": weight, "perceptual_features": "lpips", "adversarial_weight": 0.0}
        (run / "config.json").write_text(json.dumps(settings | more))
        text = make_model_card(run, "user/model").text
        assert ("| perceptual_features | lpips |" in text) == shown == ("| perceptual_weight | 0.5 |" in text)
        assert "adversarial_weight" not in text


def test_snippet_of_an_inpainting_pipeline(run):
    pipe = make_pipeline()
    DiffusionBridgeVQInpaintPipeline(**pipe.components).save_pretrained(run / "pipeline")
    (snippet,) = SNIPPET.findall(make_model_card(run, str(run / "pipeline")).text)
    names: dict = {"image": torch.full((2, 3, 6, 6), 0.7), "mask_image": torch.ones(6, 6)}
    exec(snippet.replace("mask_image)", "mask_image, num_inference_steps=2)"), names)
    assert len(names["images"]) == 2


def test_channels_are_those_of_the_codes(run):
    pipe = make_pipeline()
    config = {key: value for key, value in pipe.vqvae.config.items() if not key.startswith("_")}
    vqvae = GumbelVQModel(**config | {"latent_channels": 8, "vq_embed_dim": 3})
    DiffusionBridgeVQPipeline(vqvae, pipe.unet, pipe.scheduler).save_pretrained(run / "pipeline")
    assert "3x3 positions, 3 channels, 32 codes" in make_model_card(run, "user/model").text


def test_newest_grid_by_number(run):
    for step in (1_000_000, 999_000):
        (run / f"samples-{step:06d}.png").touch()
    assert read_run(run).grids == {"samples": run / "samples-1000000.png"}


def test_results_of_several_models(run):
    measure(run, "psnr", 10.0, model="bridge")
    measure(run, "psnr", 20.0, model="pixelcnn")
    with pytest.raises(ValueError, match="has results of bridge, pixelcnn: say which"):
        make_model_card(run, "user/model")
    (found,) = make_model_card(run, "user/model", evaluated_as="pixelcnn").data.eval_results
    assert found.metric_value == 20.0


def test_other_extractors_make_no_fid(run):
    measure(run, "frechet", 40.0, reference="test images", extractor="efficientnet-lite0")
    card = make_model_card(run, "user/model")
    assert card.data.metrics == ["frechet"] and "on another network's features" in card.text


def test_samples_with_and_without_classes_are_told_apart(run):
    for guidance, distance in ((0, 40.0), (1.5, 30.0), (1.5, 20.0)):  # the last again, and so instead
        measure(run, "frechet", distance, reference="test images", guidance_scale=guidance)
    card = make_model_card(run, "user/model")
    rows = [[cell.strip() for cell in line.split("|")] for line in card.text.splitlines() if "| frechet |" in line]
    header = next(line for line in card.text.splitlines() if line.startswith("| metric |")).split("|")
    column = [cell.strip() for cell in header].index("guidance")
    assert [(row[2], row[column]) for row in rows] == [("40", "0"), ("20", "1.5")]


def test_classes_and_pixelcnn(run, tmp_path):
    pipe = make_pipeline(classes=5)
    pipe.save_pretrained(run / "pipeline")
    assert "4 classes; no text" in make_model_card(run, "user/model").text  # one of five is the null class
    make_words_pipeline(["Red cat", "blue dog", "dog"]).save_pretrained(run / "pipeline")
    card = make_model_card(run, "user/model").text
    assert "pipe(['Red cat', 'blue dog']).images" in card and "Texts of its 4 words" in card
    torch.manual_seed(0)
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3)
    PixelCNNVQPipeline(pipe.vqvae, prior).save_pretrained(tmp_path / "pixelcnn")
    card = make_model_card(tmp_path / "pixelcnn", "user/model")
    assert "pixelcnn" in card.data.tags and "diffusion" not in card.data.tags
    assert "PixelCNNVQPipeline.from_pretrained" in card.text and "reverse steps" not in card.text


def test_students(run):
    """It said "`pipe()` takes 20 of DPM-Solver++"."""
    make_student_pipeline().save_pretrained(run / "pipeline")
    text = str(make_model_card(run, "user/model"))
    assert "distilled to draw in one to four network calls, with a guidance scale of 2." in text
    assert "ancestral steps" not in text


def test_no_pipeline(run):
    with pytest.raises(ValueError, match="There is no pipeline in"):
        make_model_card(run / "evaluation", "user/model")
    with pytest.raises(ValueError, match="There is no folder"):
        make_model_card(run / "nothing", "user/model")


def test_a_private_data_set_is_not_named(run):
    settings = json.loads((run / "config.json").read_text())
    secret = "hf://datasets/anna-meier/faces?token=hf_abcdefgh"
    (run / "config.json").write_text(json.dumps(settings | {"dataset": secret}))
    measure(run, "psnr", 10.0, dataset="anna-meier")
    card = str(make_model_card(run, "user/model"))
    assert "anna-meier" not in card and "hf_abcdefgh" not in card
    assert "a data set that isn't named" in card
    assert "images of portraits." in str(make_model_card(run, "user/model", dataset_name="portraits"))


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("model_index.json", "_class_name"),
        ("vqvae/config.json", "sample_size"),
        ("unet/config.json", "_class_name"),
        ("scheduler/scheduler_config.json", "_class_name"),
    ],
)
def test_a_configuration_that_lacks_something_is_named(run, file, key):
    """They ended in a KeyError."""
    path = run / "pipeline" / file
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))
    with pytest.raises(ValueError, match=Path(file).name):
        make_model_card(run, "user/model")


@pytest.mark.parametrize("source", [None, "", 3])
def test_a_source_that_is_no_name(run, source):
    with pytest.raises(TypeError, match="`source` must be a text"):
        make_model_card(run, source)
