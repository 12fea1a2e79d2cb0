"""Settings of runs that take a second, on real digits."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import autoencoder_settings, unet_settings

from diffusion_bridge_vq.training import VQConfig
from diffusion_bridge_vq.training.fault_tolerance.run_state import RunState

TINY = {
    "vqvae": autoencoder_settings(latent_channels=4, num_vq_embeddings=8),
    "unet": unet_settings(in_channels=4, out_channels=4),
}
SETTINGS = {
    "resolution": 8,
    "batch_size": 400,  # 3 batches an epoch, 300 images left over
    "max_train_steps": 8,
    "lr_warmup_steps": 2,
    "log_every": 2,
    "image_every": 0,
    "num_inference_steps": 2,
    "checkpoint_every": 4,
    "report_to": "none",
}


def config(cls, folder: Path, **overrides):
    """A config of class `cls` that writes into `folder`."""
    values = {**SETTINGS, **(TINY if cls is not VQConfig else {"vqvae": TINY["vqvae"]}), **overrides}
    return cls.from_preset("digits", output_dir=folder, **values)


def small_config(cls, folder: Path, **overrides):
    """[`config`] with a fifth of the images: 3 batches an epoch, too, 57 images left over."""
    return config(cls, folder, **{"split": "test", "batch_size": 80} | overrides)


def state(folder: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    """One file of a checkpoint."""
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def records(folder: Path) -> list[dict[str, float]]:
    """What a run has logged, line by line."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder: Path, name: str) -> dict[int, float]:
    """Values of a metric by step."""
    return {record["step"]: record[name] for record in records(folder) if name in record}


@contextmanager
def stopped_at_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The run inside ends as soon as it has written one."""

    class Stop(Exception):
        pass

    save = RunState.save

    def save_and_stop(self, done):
        save(self, done)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(RunState, "save", save_and_stop)
        yield


def assert_same_state(folder: Path, other: Path, step: int, names: tuple[str, ...]) -> None:
    """Those files of two runs' checkpoints are equal bit for bit."""
    for name in names:
        one, two = state(folder, step, name), state(other, step, name)
        assert one.keys() == two.keys()
        different = [key for key in one if not torch.equal(one[key], two[key])]
        assert not different, (name, different[:5])
