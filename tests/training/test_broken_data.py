"""Data that can't be read in the middle of a run: what was learned is saved, and the run goes on when it is mended."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import assert_same_state, config

from diffusion_bridge_vq.data import images as images_module
from diffusion_bridge_vq.training import E2EConfig, PriorConfig, VQConfig, train

RUN = {"batch_size": 4, "max_train_steps": 8, "checkpoint_every": 8, "random_flip": True}


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """24 files that are decoded when they are needed: 6 batches of 4 an epoch."""
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 0)
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    pixels = torch.randint(0, 256, (24, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for number, image in enumerate(pixels.numpy()):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_broken_image_loses_nothing(photos, tmp_path, monkeypatch, accumulation):
    run = RUN | {"dataset": str(photos), "gradient_accumulation_steps": accumulation}
    train(config(E2EConfig, tmp_path / "whole", **run))
    broken = photos / "train" / "13.png"
    content = broken.read_bytes()
    reads = []
    decode = images_module.decode_image

    def decode_then_break(record, *arguments):
        """Whole when the run begins, for its fingerprint, and broken in its second epoch."""
        if str(record.get("path", "")).endswith("13.png"):
            reads.append(record)
            if len(reads) == 5:
                broken.write_bytes(b"broken")
        return decode(record, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(images_module, "decode_image", decode_then_break)
        with pytest.raises(ValueError, match=r"13\.png can't be decoded") as error:
            train(config(E2EConfig, tmp_path / "parts", **run))
    step, saved = re.search(r"The state after step (\d+) is saved in (.*)\.$", str(error.value)).groups()
    assert int(step) >= 1 and Path(saved) == tmp_path / "parts" / "checkpoints" / f"step-{int(step):08d}"
    assert Path(saved).is_dir()
    with pytest.raises(ValueError, match=r"13\.png can't be decoded"):
        train(config(E2EConfig, tmp_path / "parts", resume=True, **run))
    broken.write_bytes(content)
    train(config(E2EConfig, tmp_path / "parts", resume=True, **run))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 8, ("model", "ema", "optimizer", "random-0"))


def test_an_evaluation_that_fails_loses_nothing(tmp_path, photos):
    """Neither of the steps since the last checkpoint, of which there is none here."""

    def evaluate(components, step):
        raise RuntimeError("no connection")

    train(config(VQConfig, tmp_path / "vq", **RUN, dataset=str(photos)))["vqvae"].save_pretrained(
        tmp_path / "vq" / "vqvae"
    )
    run = {"init_from": tmp_path / "vq", "dataset": str(photos), "evaluate_every": 3, "validation_split": "train"}
    with pytest.raises(RuntimeError, match="no connection") as error:
        train(config(PriorConfig, tmp_path / "prior", **RUN | run), evaluate)
    saved = tmp_path / "prior" / "checkpoints" / "step-00000003"
    assert saved.is_dir() and error.value.__notes__ == [f"The state after step 3 is saved in {saved}."]
