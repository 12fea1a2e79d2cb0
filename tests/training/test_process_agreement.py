"""What one of several processes decides or meets, all of them act on alike. Two real processes (gloo, CPU)."""

import os
import tarfile

import agreement_work
import pytest
import torch
from PIL import Image
from warm_processes import launch

from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import Trainer
from diffusion_bridge_vq.training.data import TrainingBatches
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock

pytestmark = pytest.mark.slow


def test_the_clock_of_the_slowest_counts(tmp_path):
    """240 s in steps of 40 s: both are at the same place of the schedule after each of six steps."""
    launch(tmp_path, agreement_work.run_by_own_clock, tmp_path)
    places = [torch.load(tmp_path / f"places-{rank}.pt", weights_only=True) for rank in range(2)]
    assert places[0] == places[1] == [4, 8, 12, 16, 20, 24]


def test_data_that_one_process_cannot_read(tmp_path):
    """Of step 6 it is the second batch: both save the state after step 5, and end."""
    launch(tmp_path, agreement_work.run_with_unreadable_data, tmp_path, Trainer, "batches", 11)
    first, second = ((tmp_path / f"refused-{rank}").read_text() for rank in range(2))
    saved = f"The state after step 5 is saved in {tmp_path / 'checkpoints' / 'step-00000005'}."
    assert first == f"Another process can't read its data. {saved}"
    assert second == f"image 7 can't be decoded. {saved}"
    assert {"random-0.safetensors", "random-1.safetensors"} <= set(os.listdir(tmp_path / "checkpoints/step-00000005"))


def test_data_that_one_process_cannot_read_before_the_first_step(tmp_path):
    """The first batches place the codebook. Both end by themselves, with nothing to save."""
    launch(tmp_path, agreement_work.run_with_unreadable_data, tmp_path, TrainingBatches, "first", 5)
    first, second = ((tmp_path / f"refused-{rank}").read_text() for rank in range(2))
    assert first == "Another process can't read its data." and second == "image 7 can't be decoded"
    assert not (tmp_path / "checkpoints").exists()


def test_a_stream_that_the_main_process_reads_for_all(tmp_path):
    """Its 86th image is broken, of 8 a step: the others don't wait for it, and all save the state after step 10."""
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "train.tar", "w") as archive:
        for number in range(100):
            image = tmp_path / f"{number:03}.png"
            Image.new("L", (8, 8), number).save(image)
            if number == 85:
                image.write_bytes(b"broken")
            archive.add(image, image.name)
    launch(tmp_path, agreement_work.run_on_a_broken_stream, tmp_path)
    first, second = ((tmp_path / f"refused-{rank}").read_text() for rank in range(2))
    saved = tmp_path / "run" / "checkpoints" / "step-00000010"
    assert "085.png" in first and first.endswith(f"The state after step 10 is saved in {saved}.")
    assert second == first
    assert {"random-0.safetensors", "random-1.safetensors"} <= set(os.listdir(saved))


def test_a_folder_that_is_in_use_is_refused_by_all(tmp_path):
    with run_lock(RunFolder(tmp_path)):
        launch(tmp_path, agreement_work.refused_at_once, tmp_path)
    first, second = ((tmp_path / f"refused-{rank}").read_text() for rank in range(2))
    assert first == second and f"process {os.getpid()} on" in first
