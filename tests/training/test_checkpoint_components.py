"""A checkpoint gives the components that the run would have saved at that step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import small_config as config

from diffusion_bridge_vq import pretrained
from diffusion_bridge_vq.training import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, train
from diffusion_bridge_vq.training.checkpoint_components import load_components

PRIOR = {"width": 8, "num_layers": 2, "kernel_size": 3}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    train(config(VQConfig, folder, max_train_steps=1))["vqvae"].save_pretrained(folder / "vqvae")
    return folder


def assert_same(components: dict, expected: dict) -> None:
    assert components.keys() == expected.keys()
    for name, component in expected.items():
        assert {**components[name].config} == {**component.config}
        if isinstance(component, torch.nn.Module):
            assert not components[name].training
            saved, trained = components[name].state_dict(), component.state_dict()
            assert saved.keys() == trained.keys()
            assert all(torch.equal(saved[key], trained[key]) for key in trained)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (VQConfig, {}),
        (E2EConfig, {"class_conditional": True}),
        (PriorConfig, {"class_conditional": True, "cache_latents": True}),
        (PixelCNNConfig, {"class_conditional": True, "eval_every": 2, "patience": 1, "prior": PRIOR}),
    ],
)
def test_the_last_checkpoint_holds_what_the_run_gave(cls, settings, autoencoder, tmp_path):
    if "prior" in settings or cls is PriorConfig:
        settings = settings | {"init_from": autoencoder}
    if cls is PixelCNNConfig:
        run = PixelCNNConfig.from_preset(
            "digits", output_dir=tmp_path, resolution=8, batch_size=400, max_train_steps=4, image_every=0,
            checkpoint_every=4, report_to="none", **settings,
        )  # fmt: skip
    else:
        run = config(cls, tmp_path, max_train_steps=4, **settings)
    expected = train(run)
    components, checkpoint = load_components(tmp_path)
    assert checkpoint == tmp_path / "checkpoints" / "step-00000004"
    assert_same(components, expected)
    assert_same(load_components(checkpoint)[0], expected)


@pytest.fixture(scope="module")
def prior_run(autoencoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    train(config(PriorConfig, folder, max_train_steps=4, checkpoint_every=2, init_from=autoencoder))
    return folder


def test_earlier_checkpoints_differ(prior_run):
    first, last = (
        load_components(prior_run / "checkpoints" / f"step-0000000{step}")[0]["unet"].state_dict() for step in (2, 4)
    )
    assert any(not torch.equal(first[key], last[key]) for key in last)


def test_an_autoencoder_that_was_moved(prior_run, autoencoder, tmp_path):
    settings = json.loads((prior_run / "config.json").read_text())
    shutil.copytree(prior_run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings | {"init_from": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="gone, which isn't there"):
        load_components(tmp_path / "run")
    components, _ = load_components(tmp_path / "run", start=autoencoder)
    assert_same(components, load_components(prior_run)[0])


def test_an_autoencoder_of_the_hub(prior_run, autoencoder, tmp_path, monkeypatch):
    settings = json.loads((prior_run / "config.json").read_text())
    shutil.copytree(prior_run, tmp_path / "run")
    settings |= {"init_from": None, "vqvae_from": "user/model"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    asked = []
    monkeypatch.setattr(pretrained, "fetch_autoencoder", lambda name: asked.append(name) or autoencoder)
    assert_same(load_components(tmp_path / "run")[0], load_components(prior_run)[0])
    assert set(asked) == {"user/model"}


def test_a_run_that_started_from_nothing(autoencoder, tmp_path):
    """The folder was ignored."""
    train(config(VQConfig, tmp_path, max_train_steps=1))
    with pytest.raises(ValueError, match=f"started from no other folder: leave out {autoencoder}"):
        load_components(tmp_path, start=autoencoder)


def test_what_is_no_checkpoint(prior_run, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        load_components(tmp_path / "none")
    with pytest.raises(ValueError, match="neither a checkpoint nor the folder of a run"):
        load_components(tmp_path)
    shutil.copytree(prior_run, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    (checkpoint / "ema.safetensors").write_bytes(b"what")
    with pytest.raises(ValueError, match=r"step-00000004 is damaged: ema.safetensors has 4 bytes"):
        load_components(checkpoint)
    assert load_components(tmp_path / "run")[1].name == "step-00000002"
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match="There is no file"):
        load_components(tmp_path / "run")


def test_one_from_before_the_prior_was_trained_is_refused(tmp_path):
    run = config(E2EConfig, tmp_path, max_train_steps=4, checkpoint_every=2, joint_fraction=0.5)
    train(run)
    with pytest.raises(ValueError, match="step-00000002 is from before the unet had been trained at all"):
        load_components(tmp_path / "checkpoints" / "step-00000002")
    assert load_components(tmp_path / "checkpoints" / "step-00000004")[0].keys() == {"vqvae", "unet", "scheduler"}


def test_settings_that_do_nothing_are_left_out(prior_run, tmp_path):
    """As 0.1.0 saved them; a new run with them is refused."""
    shutil.copytree(prior_run, tmp_path / "run")
    settings = json.loads((prior_run / "config.json").read_text()) | {"condition_dropout": 0.9}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert_same(load_components(tmp_path / "run")[0], load_components(prior_run)[0])


def test_a_kind_of_run_that_does_not_exist(prior_run, tmp_path):
    shutil.copytree(prior_run, tmp_path / "run")
    settings = json.loads((prior_run / "config.json").read_text()) | {"kind": "x"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"has kind 'x', expected .*was it written by this version"):
        load_components(tmp_path / "run")


def test_a_run_from_before_its_kind_was_saved(prior_run, tmp_path):
    shutil.copytree(prior_run, tmp_path / "run")
    settings = json.loads((prior_run / "config.json").read_text())
    old = {name: value for name, value in settings.items() if name not in ("kind", "dataset_name")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(old))
    assert_same(load_components(tmp_path / "run")[0], load_components(prior_run)[0])
