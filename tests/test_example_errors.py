"""Scripts of examples/ given what isn't there or doesn't fit: one line and status 2, no traceback."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import make_conditioned_pipeline, make_gray_pipeline, make_pipeline
from tiny_run import config as tiny_config

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli import errors_as_lines
from diffusion_bridge_vq.training import E2EConfig, train

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photos(tmp_path) -> tuple[Path, np.ndarray]:
    """A folder of three pictures 6 x 6, and what is in them."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos", pixels


def test_inpaint_own_photos(example, fails, photos, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    options = ["--num-inference-steps", 2, "--output-dir", tmp_path / "out", "--mask", "left-half", "--chain-steps", 0]
    folder, pixels = photos
    line = fails("inpaint.py", tmp_path / "pipeline", *options)
    assert "--dataset: say which images" in line and "6x6 with 3 channel(s)" in line
    line = fails("inpaint.py", tmp_path / "pipeline", *options, "--dataset", folder)
    assert "has no split 'test'; choose one of train" in line
    assert "doesn't exist" in fails("inpaint.py", tmp_path / "pipeline", *options, "--dataset", tmp_path / "none")
    options += ["--dataset", folder, "--split", "train"]
    assert "has 3" in fails("inpaint.py", tmp_path / "pipeline", *options, "--num-images", 4)
    assert "nor a file" in fails("inpaint.py", tmp_path / "pipeline", *options, "--mask", "middle")
    assert not (tmp_path / "out").exists()

    example("inpaint.py", tmp_path / "pipeline", *options, "--num-completions", 2, "--composite-strength", 1)
    completions = load_file(tmp_path / "out" / "inpainting.safetensors")["completions"]  # (n, k, C, H, W)
    given = torch.from_numpy(pixels).movedim(-1, 1)[:, None, :, :, :2].expand(-1, 2, -1, -1, -1) / 255
    torch.testing.assert_close(completions[..., :2], given, atol=1e-6, rtol=0)


def test_inpaint_draws_from_images(example, fails, capsys, tmp_path):
    """From what is made of each image, or from pictures; as the pipeline does."""
    make_conditioned_pipeline().save_pretrained(tmp_path / "pipeline")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "photos" / f"{number}.png")
    options = ["--dataset", tmp_path / "photos", "--split", "train", "--mask", "left-half", "--chain-steps", 0]
    options += ["--num-images", 2, "--num-inference-steps", 2, "--num-completions", 1, "--jump-n-sample", 1]
    pipe = DiffusionBridgeVQInpaintPipeline.from_pretrained(tmp_path / "pipeline")
    grays = [picture.convert("L") for picture in pictures]
    hidden = torch.zeros(8, 8).index_fill_(1, torch.arange(4, 8), 1.0)
    one = ["--condition", tmp_path / "photos" / "1.png"]
    for name, extra, given, shown in (("own", [], grays, "PICTURE"), ("other", one, grays[1], str(one[1]))):
        example("inpaint.py", tmp_path / "pipeline", *options, *extra, "--output-dir", tmp_path / name)
        assert f" --condition {shown}  # draw whole" in capsys.readouterr().out  # or it would be refused
        found = load_file(tmp_path / name / "inpainting.safetensors")["completions"][:, 0]
        expected = pipe(
            pictures, hidden, 2, generator=torch.Generator().manual_seed(0), condition=given, output_type="pt"
        ).images
        torch.testing.assert_close(found, expected)
    options += ["--output-dir", tmp_path / "out"]
    two = ["--num-images", 1, *one, one[1]]
    assert "Got 2 conditions for 1 images" in fails("inpaint.py", tmp_path / "pipeline", *options, *two)
    make_pipeline().save_pretrained(tmp_path / "plain")
    line = fails("inpaint.py", tmp_path / "plain", *options, *one)
    assert "leave out --condition" in line and not (tmp_path / "out").exists()


def test_inpaint_digits_by_default(example, tmp_path):
    make_gray_pipeline().save_pretrained(tmp_path / "pipeline")
    example("inpaint.py", tmp_path / "pipeline", "--num-inference-steps", 2, "--output-dir", tmp_path / "out")
    assert load_file(tmp_path / "out" / "inpainting.safetensors")["completions"].shape == (3, 4, 1, 16, 16)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A saved pipeline with three classes, one of which is the null class."""
    folder = tmp_path_factory.mktemp("saved")
    pipe = make_pipeline(classes=3)
    DiffusionBridgeVQPipeline(**pipe.components, id2label={0: "ship", 1: "horse"}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-inference-steps", 30], "`num_inference_steps` must be a whole number in 1..20, got 30"),
        (["--num-inference-steps", 0], "argument --num-inference-steps: must be at least 1, got 0"),
        (["--chain-steps", -1], "argument --chain-steps: must be at least 0, got -1"),
        (["--batch-size", -1], "argument --batch-size: must be at least 1, got -1"),
        (["--num-images", "many"], "argument --num-images: expected a whole number, got 'many'"),
        (["--tile-size", 0], "argument --tile-size: must be at least 1, got 0"),
        (["--seed", 2**64], "argument --seed: must be at most"),
        (["--guidance-scale", "nan"], "argument --guidance-scale: expected a finite number, got 'nan'"),
        (["--class-labels", 7], "`class_labels` must lie in 0..1, got 7"),
        (["--class-labels", "shop"], "There is no class 'shop'; the classes are ship, horse"),
        (["--num-images", 10**7], "A grid of 10,000,000 images would have 202,432 pixels a side, and PNG takes"),
        (["--tile-size", 4096, "--num-images", 999], "take a smaller --tile-size, or give --output-dir"),
    ],
)
def test_sample_refuses(fails, pipeline, options, words, tmp_path):
    assert words in fails("sample.py", pipeline, "--output", tmp_path / "out.png", *options)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-inference-steps", 30], "`num_inference_steps` must be a whole number in 1..20, got 30"),
        (["--guidance-scale", 2], "`guidance_scale` needs `class_labels` in 0..1"),
        (["--class-labels", "shop"], "There is no class 'shop'; the classes are ship, horse"),
    ],
)
def test_sample_refuses_before_the_folder_is_made(fails, pipeline, options, words, tmp_path):
    assert words in fails("sample.py", pipeline, "--output-dir", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A saved pipeline without classes."""
    folder = tmp_path_factory.mktemp("plain")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("sample.py", ["--guidance-scale", 2], "This model has no classes: leave out `guidance_scale`."),
        ("sample.py", ["--all-classes"], "This model has no classes: leave out --all-classes."),
        ("draw_trajectories.py", ["--class-dropout", 0.1], "has no classes: leave out --class-dropout."),
    ],
)
def test_a_model_without_classes(fails, plain, script, options, words, tmp_path):
    assert words in fails(script, plain, "--output-dir", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_sample_without_a_pipeline(fails, tmp_path):
    assert f"There is no folder {tmp_path / 'none'}" in fails("sample.py", tmp_path / "none")


def test_sample_takes_names_of_classes(example, pipeline, tmp_path):
    """In turn, by name or number."""
    drawn = []
    for labels in (["horse", "ship"], [1, 0], ["ship", "horse"]):
        drawn.append(sampled(example, pipeline, tmp_path, "--class-labels", *labels))
    assert drawn[0] == drawn[1] != drawn[2]


def test_sample_takes_all_classes(example, pipeline, tmp_path):
    all_classes = sampled(example, pipeline, tmp_path, "--all-classes")
    assert all_classes == sampled(example, pipeline, tmp_path, "--class-labels", 0, 1)


def sampled(example, pipeline, folder: Path, *options) -> bytes:
    """The grid of three images, drawn two at once."""
    numbers = ["--num-images", 3, "--num-inference-steps", 2, "--batch-size", 2]
    example("sample.py", pipeline, *numbers, "--output", folder / "out.png", *options)
    return (folder / "out.png").read_bytes()


def test_a_run_folder_is_a_pipeline(example, pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "config.json").write_text("{}")
    options = ["--num-images", 1, "--num-inference-steps", 2]
    for place in (tmp_path / "run", pipeline):
        example("sample.py", place, *options, "--output", tmp_path / f"{place.name}.png")
    assert (tmp_path / "run.png").read_bytes() == (tmp_path / f"{pipeline.name}.png").read_bytes()


def test_a_checkpoint_becomes_a_pipeline(example, fails, tmp_path):
    run, out = tmp_path / "run", tmp_path / "looked-at"
    train(tiny_config(E2EConfig, run, max_train_steps=4))  # and nobody saved what it returned
    checkpoint = run / "checkpoints" / "step-00000004"
    assert "export_checkpoint.py" in fails("sample.py", checkpoint, "--output", tmp_path / "out.png")
    example("export_checkpoint.py", checkpoint, "--output-dir", out)
    example("sample.py", out, "--num-images", 1, "--num-inference-steps", 2, "--output", tmp_path / "out.png")
    assert (tmp_path / "out.png").is_file()
    assert "holds a run or a pipeline already" in fails("export_checkpoint.py", run, "--output-dir", out)
    assert "holds a run or a pipeline already" in fails("export_checkpoint.py", run, "--output-dir", run)


# ------------------------------------------------------------------------------------------------- other scripts


def test_a_component_is_no_model_to_evaluate(fails, pipeline, tmp_path, monkeypatch):
    """A U-Net was loaded as an autoencoder without weights, and failed in torch."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    arguments = ["rfid", "--model", f"it={pipeline / 'unet'}", "--output-dir", tmp_path]
    assert "has UNet2DModel, expected GumbelVQModel" in fails("evaluate.py", *arguments)


@pytest.mark.parametrize("script", ["sample.py", "inpaint.py", "export_onnx.py", "fit_timesteps.py", "push_to_hub.py"])
def test_an_autoencoder_alone_is_no_pipeline(fails, script, pipeline, tmp_path):
    shutil.copytree(pipeline / "vqvae", tmp_path / "alone")
    rest = ["user/model"] if script == "push_to_hub.py" else []
    assert "holds a GumbelVQModel alone, not a pipeline" in fails(script, tmp_path / "alone", *rest)


def test_steps_are_fitted_in_a_folder(fails, monkeypatch, tmp_path):
    """Of a model of the Hub they would go into a new folder of its name."""
    monkeypatch.chdir(tmp_path)
    assert "fetch a pipeline of the Hub with `hf download user/model" in fails("fit_timesteps.py", "user/model")


def test_a_name_of_a_repository_is_read_before_the_work(fails, nothing_is_loaded, tmp_path):
    arguments = ["--vqvae-from", "AUTOENCODER", "--dataset", "digits", "--output-dir", tmp_path / "out"]
    assert "isn't a repository's name" in fails("encode_dataset.py", *arguments, "--push-to-hub", "no name")


def test_errors_of_libraries_are_one_line(capsys):
    """The Hub's have two and more."""
    with pytest.raises(SystemExit), errors_as_lines():
        raise OSError("404 Client Error.\n\n  Repository Not Found\nfor url: X.")
    assert capsys.readouterr().err.endswith("error: 404 Client Error. Repository Not Found for url: X.\n")


def test_evaluate(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    output = ["--output-dir", tmp_path / "out"]
    none = tmp_path / "none"
    assert f"There is no folder {none}" in fails("evaluate.py", "kl", "--model", f"bridge={none}", *output)
    assert "--model: expected NAME=FOLDER, got 'x'" in fails("evaluate.py", "kl", "--model", "x", *output)
    two = ["--model", f"bridge={tmp_path / 'one'}", "--model", f"bridge={tmp_path / 'two'}"]
    assert "each needs a name of its own, got bridge, bridge" in fails("evaluate.py", "kl", *two, *output)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--jump-n-sample", 1001], "argument --jump-n-sample: must be at most 1000, got 1001"),
        (["--num-samples", 2], "argument --num-samples: must be at least 3, got 2"),
        (["--fix", "1=0", "2=4"], "No walk has {1: 0, 2: 4}"),
    ],
)
def test_the_toy_refuses_before_it_trains(fails, options, words, tmp_path):
    assert words in fails("toy_bridge.py", "--max-train-steps", 1, "--output-dir", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["vqvae", "prior", "pixelcnn", "e2e"])
def test_training_without_data(fails, kind, tmp_path):
    options = ["--dataset", tmp_path / "none", "--output-dir", tmp_path / "run", "--report-to", "none"]
    options += ["--init-from", tmp_path / "vq"] if kind in ("prior", "pixelcnn") else []
    line = fails(f"train_{kind}.py", "--preset", "digits", *options)
    assert line.startswith(f"train_{kind}.py: error: ") and "none' doesn't exist; give a folder" in line
    assert not (tmp_path / "run").exists()
