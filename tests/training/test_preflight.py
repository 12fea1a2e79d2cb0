"""What a run refuses before it does any work: its folder, its data, its autoencoder."""

import os
import re
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_run import config

from diffusion_bridge_vq.cli import parse_config
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, PriorConfig, VQConfig, build_objective, run, train
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock


@pytest.fixture
def no_data(monkeypatch):
    """Nothing may be read before the refusal."""

    def refuse(_):
        raise AssertionError("data were read")

    monkeypatch.setattr(run, "open_images", refuse)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_place_of_the_folder(tmp_path, no_data, dry_run, below):
    (tmp_path / "file").write_text("notes")
    with pytest.raises(ValueError, match=r"`output_dir` .* can't be a folder: .*file is a file"):
        train(config(VQConfig, tmp_path / "file" / below, dry_run=dry_run))
    assert (tmp_path / "file").read_text() == "notes"


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_folder_without_permission(tmp_path, no_data, dry_run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, _: place != tmp_path)  # root may write anywhere
    with pytest.raises(ValueError, match=rf"no permission for {tmp_path}"):
        train(config(VQConfig, tmp_path / "a" / "b", dry_run=dry_run))


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_folder_that_holds_a_run(tmp_path, no_data, dry_run):
    (tmp_path / "pipeline").mkdir()
    with pytest.raises(ValueError, match="already holds pipeline of a run"):
        train(config(VQConfig, tmp_path, dry_run=dry_run))


@pytest.mark.parametrize("name", [".", "mine"])
def test_a_run_does_not_write_among_its_images(tmp_path, name):
    with pytest.raises(ValueError, match="is in the folder of the images"):
        train(config(E2EConfig, tmp_path / name, dataset=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_two_runs_in_one_folder(tmp_path, no_data, monkeypatch):
    """The second is refused, whether it resumes or not, and destroys nothing."""
    monkeypatch.setattr(run, "run_lock", lambda folder: run_lock(folder, wait_seconds=0))
    checkpoint = RunFolder(tmp_path).checkpoint(4)
    checkpoint.mkdir(parents=True)
    with (
        run_lock(RunFolder(tmp_path)),
        pytest.raises(ValueError, match=f"Another run writes.*process {os.getpid()} on "),
    ):
        train(config(VQConfig, tmp_path, resume=True))
    assert checkpoint.is_dir()


def test_a_new_folder_is_held_while_the_run_writes(tmp_path, monkeypatch):
    refused = []

    def look(self):
        with (
            pytest.raises(ValueError, match="Another run writes"),
            run_lock(RunFolder(tmp_path / "new"), wait_seconds=0),
        ):
            pass
        refused.append(True)

    monkeypatch.setattr(run.Trainer, "fit", look)
    train(config(VQConfig, tmp_path / "new"))
    assert refused
    with run_lock(RunFolder(tmp_path / "new"), wait_seconds=0):
        pass


def test_a_disk_without_room_for_files(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda _: SimpleNamespace(f_files=1000, f_favail=3, f_bavail=10**9, f_blocks=10**9, f_bfree=10**9, f_frsize=1),
    )
    with pytest.raises(ValueError, match=r"room for 3 more files \(inodes\).*Remove files"):
        train(config(VQConfig, tmp_path / "run"))


def test_own_data_need_a_preset(tmp_path, capsys):
    """Else color photos would be trained as the gray 16 x 16 digits of the default preset."""
    with pytest.raises(SystemExit):
        parse_config(E2EConfig, ["--dataset", str(tmp_path)])
    assert "--preset" in capsys.readouterr().err
    assert parse_config(E2EConfig, ["--dataset", str(tmp_path), "--preset", "cifar10-tiny"]).resolution == 32
    assert parse_config(E2EConfig, ["--dataset", "digits"]).resolution == 16


def test_a_run_says_what_it_is_about_to_do(tmp_path, capsys):
    """On one screen, without the settings in full."""
    train(config(VQConfig, tmp_path, dry_run=True, adversarial_weight=0.1, image_every=5))
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 20
    screen = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines() if re.match(r"[a-z]+ {2,}", line))
    assert screen["data"] == "digits: 1,500 images, 8 x 8 gray, 10 classes (not used)"
    assert screen["latents"] == "4 x 4 positions, 4 channels, 8 codes"
    assert screen["training"].startswith("8 steps of 400 images (2.13 epochs)")
    assert screen["phases"] == "from step 0 on: vqvae; from step 4 on: vqvae and discriminator"
    assert screen["pictures"] == "every 5 steps and at the end"
    weights = sum(p.numel() for p in build_objective(config(VQConfig, tmp_path)).vqvae.parameters())
    assert screen["networks"].startswith(f"vqvae {weights / 1000:.1f}K, discriminator ")
    assert "reconstruction" not in screen["networks"]  # it has no weights of its own
    assert re.match(r".* per step, .* in all; first pictures after .*; memory \d+", screen["estimate"])


def test_an_autoencoder_for_other_images(tmp_path):
    build_objective(config(VQConfig, tmp_path)).vqvae.save_pretrained(tmp_path / "vqvae")
    with pytest.raises(ValueError, match=r"for images with 1 channels, `channels` is 3\. Give `channels` 1"):
        build_objective(config(PriorConfig, tmp_path / "run", init_from=tmp_path, channels=3))
    odd = {"init_from": tmp_path, "resolution": 9, "vqvae": {}}
    with pytest.raises(ValueError, match=r"`resolution` must be divisible by 2 for the autoencoder in .*, got 9"):
        build_objective(config(PriorConfig, tmp_path / "run", **odd))


@pytest.mark.parametrize("classes", [["cat"], []])
def test_a_class_conditional_run_without_classes(tmp_path, classes):
    for folder in classes or ["."]:
        (tmp_path / "photos" / "train" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "train" / folder / "1.png")
    words = r"needs classes, but .*photos has (none|only one); .*folder of their own, or drop `class_conditional`"
    with pytest.raises(ValueError, match=words):
        train(config(E2EConfig, tmp_path / "run", dataset=str(tmp_path / "photos"), class_conditional=True))


def test_two_runs_of_one_process_may_have_two_precisions(tmp_path):
    """As in a notebook."""
    for precision in ("no", "bf16", "no"):
        train(config(VQConfig, tmp_path / "run", mixed_precision=precision, dry_run=True))


def test_a_warm_up_longer_than_the_run_is_named(tmp_path, capsys):
    train(config(VQConfig, tmp_path, lr_warmup_steps=100, dry_run=True))
    assert "`lr_warmup_steps` 100 reach over all 8 steps" in capsys.readouterr().out


def test_paths_may_be_text_and_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config(VQConfig, "~/run").output_dir == tmp_path / "run"


def test_values_of_another_type(tmp_path):
    for change, words in (
        ({"batch_size": 2.5}, "`batch_size` must be of type int, got 2.5"),
        ({"batch_size": True}, "`batch_size` must be of type int, got True"),
        ({"learning_rate": "0.1"}, "`learning_rate` must be of type float or int, got '0.1'"),
        ({"vqvae": None}, "`vqvae` must be of type dict, got None"),
        ({"random_flip": "yes"}, "`random_flip` must be of type bool, got 'yes'"),
    ):
        with pytest.raises(TypeError, match=words):
            config(VQConfig, tmp_path, **change)
