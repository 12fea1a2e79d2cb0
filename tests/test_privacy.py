"""What may leave the machine: no path, no name of a folder, no token."""

import json
import os
from pathlib import Path

import pytest

from diffusion_bridge_vq.privacy import (
    UNNAMED_DATASET,
    public_command,
    public_dataset,
    public_result,
    public_settings,
    redact,
)

PRIVATE = [
    "/home/somebody/anna-meier",
    "~/anna-meier/",
    "data/photos/anna-meier",
    "./anna-meier",
    "../anna-meier",
    r"C:\Users\somebody\anna-meier",
    r"\\server\share\anna-meier",
    "hf://datasets/anna-meier/faces?token=hf_abcdefgh",
    "https://anna-meier:secret@example.org/faces.tar?sig=hf_abcdefgh",
    "s3://anna-meier/faces",
]


@pytest.mark.parametrize("dataset", PRIVATE)
def test_a_private_data_set_has_no_name(dataset):
    assert public_dataset(dataset) is None
    settings = public_settings({"dataset": dataset, "seed": 1, "init_from": dataset, "output_dir": dataset})
    assert settings == {"dataset": UNNAMED_DATASET, "seed": 1}


@pytest.mark.parametrize("dataset", ["digits", "user/faces"])
def test_a_public_data_set_keeps_its_name(dataset):
    assert public_settings({"dataset": dataset})["dataset"] == dataset


def test_a_folder_that_looks_like_an_id_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "anna-meier" / "faces").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_dataset("anna-meier/faces") is None
    monkeypatch.chdir(os.sep)
    # The run wrote down, where the folder was, that its data set has no public name.
    assert public_settings({"dataset": "anna-meier/faces", "dataset_name": None})["dataset"] == UNNAMED_DATASET


def test_names_that_were_given():
    settings = {"dataset": "/home/somebody/anna-meier", "dataset_name": "portraits"}
    assert public_settings(settings)["dataset"] == "portraits"
    assert public_settings(settings, "faces")["dataset"] == "faces"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/somebody/faces", "PATH"),
        ("~/faces/", "PATH"),
        (r"C:\Users\somebody\faces", "PATH"),
        (r"\\server\share\faces", "PATH"),
        ("/home/some body/faces", "PATH"),
        ("../up/data", "PATH"),
        ("see /a/b/c.json, and (/d/e)", "see PATH, and (PATH)"),
        ("https://huggingface.co/user/model", "https://huggingface.co/user/model"),
        ("https://me:pw@huggingface.co/user/model?token=abc#x", "https://huggingface.co/user/model"),
        ("at https://example.org/a?b=c", "at URL"),
        ("user/model", "user/model"),
        ("12 / 3 and images/s", "12 / 3 and images/s"),
        ("with hf_abcdefghij", "with ***"),
        ("token=abc, api_key: xyz", "token=***, api_key: ***"),
        ({"_name_or_path": "/a/b", "c": ["/a/b"], "hub_token": "abc"}, {"c": ["PATH"]}),
        (1.5, 1.5),
    ],
)
def test_redact(given, expected):
    assert redact(given) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("evaluate.py kl --model it=/x/anna/pipeline --seed 3", "python evaluate.py kl --model it=MODEL --seed 3"),
        ("evaluate.py fid kl --model it=/x/anna", "python evaluate.py fid kl --model it=MODEL"),
        ("python examples/evaluate.py all --dataset=anna", "python examples/evaluate.py all --dataset=DATASET"),
        ("evaluate.py fid --dataset user/faces", "python evaluate.py fid --dataset user/faces"),
        ("evaluate.py fid --dataset 'hf://a/b?token=hf_abcdefgh'", "python evaluate.py fid --dataset DATASET"),
        ("study_steps.py anna/pipeline --steps 4 8", "python study_steps.py FOLDER --steps 4 8"),
        ("train_e2e.py --init-from anna --preset digits", "python train_e2e.py --init-from INIT_FROM --preset digits"),
        ("evaluate.py fid --train-split train[:20000]", "python evaluate.py fid --train-split 'train[:20000]'"),
        ("dbvq evaluate fid --model it=/x/anna --seed 3", "dbvq evaluate fid --model it=MODEL --seed 3"),
        ("dbvq anna", ""),
        ("/home/anna/private_script.py --who anna", ""),
        ("python -m pytest /home/anna", ""),
        ("evaluate.py 'open", ""),
        ("", ""),
    ],
)
def test_commands(command, expected):
    assert public_command(command) == expected


def test_a_result_of_a_private_folder():
    command = "evaluate.py psnr --model it=/home/anna/run --dataset /home/anna"
    result = {"name": "psnr", "value": 20.5, "n": 7, "dataset": "anna", "model": "it", "command": command}
    assert "anna" not in json.dumps(public_result(result))
    assert public_result(result)["dataset"] == UNNAMED_DATASET
    assert public_result(result, (None, "faces"))["dataset"] == "faces"
    assert public_result(result | {"dataset": "cifar10"})["dataset"] == "cifar10"


def test_a_result_whose_data_set_was_named():
    result = {"name": "psnr", "value": 1.0, "dataset": "faces", "command": "evaluate.py psnr --dataset-name faces"}
    assert public_result(result) == result | {"command": "python evaluate.py psnr --dataset-name faces"}


def test_trackers_get_no_names_of_this_machine(tmp_path):
    from diffusion_bridge_vq.training import VQConfig

    folder = tmp_path / "anna-meier"
    folder.mkdir()
    config = VQConfig.from_preset("digits", dataset=str(folder), output_dir=Path("outputs/anna-meier"))
    assert config.to_json()["dataset_name"] is None
    assert "anna-meier" not in json.dumps(public_settings(config.to_json()))


@pytest.mark.parametrize(
    ("name", "public"), [("anna-meier", None), ("digits", "digits"), ("user/faces", "user/faces")]
)
def test_encoded_images_are_named_after_what_was_encoded(name, public, tmp_path, monkeypatch):
    """`dataset` is then a preset's: a card said that a network of somebody's photos was trained on digits."""
    from diffusion_bridge_vq.training import PriorConfig

    monkeypatch.chdir(tmp_path)
    described = {"what": "latents", "precision": "float16", "num_codes": 8, "mirrored": False, "autoencoder": "0"}
    described |= {"normalizer": {}, "data": {"name": name, "split": "train"}, "class_names": None, "labels": False}
    Path("anna-latents").mkdir()
    Path("anna-latents/encoding.json").write_text(json.dumps(described | {"parts": 1, "version": "0"}))
    config = PriorConfig.from_preset("digits", vqvae_from="anna-vq", latents="anna-latents", output_dir=tmp_path)
    assert config.to_json()["dataset_name"] == public
    settings = public_settings(config.to_json())
    assert "anna" not in json.dumps(settings) and settings["dataset"] == (public or UNNAMED_DATASET)
