"""What one of several processes decides or meets, all of them act on alike. Two real processes (gloo, CPU)."""

import os

import process_work
import pytest
import torch
import torch.multiprocessing as mp

from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock

pytestmark = pytest.mark.slow
mp.get_context("forkserver").set_forkserver_preload(["diffusion_bridge_vq.training.trainer"])


def launch(folder, work) -> None:
    arguments = (2, str(folder), work, folder)
    mp.start_processes(process_work.process, arguments, nprocs=2, start_method="forkserver")


def test_the_clock_of_the_slowest_counts(tmp_path):
    """240 s in steps of 40 s: both are at the same place of the schedule after each of six steps."""
    launch(tmp_path, process_work.run_by_own_clock)
    places = [torch.load(tmp_path / f"places-{rank}.pt", weights_only=True) for rank in range(2)]
    assert places[0] == places[1] == [4, 8, 12, 16, 20, 24]


def test_data_that_one_process_cannot_read(tmp_path):
    """Both save the state after step 5 and end;"""
    launch(tmp_path, process_work.run_with_unreadable_data)
    first, second = ((tmp_path / f"refused-{rank}").read_text() for rank in range(2))
    saved = f"The state after step 5 is saved in {tmp_path / 'checkpoints' / 'step-00000005'}."
    assert first == f"Another process can't read its data. {saved}"
    assert second == f"image 7 can't be decoded. {saved}"
    assert {"random-0.safetensors", "random-1.safetensors"} <= set(os.listdir(tmp_path / "checkpoints/step-00000005"))


def test_a_folder_that_is_in_use_is_refused_by_all(tmp_path):
    with run_lock(RunFolder(tmp_path)):
        launch(tmp_path, process_work.refused_at_once)
    first, second = ((tmp_path / f"refused-{rank}").read_text() for rank in range(2))
    assert first == second and f"process {os.getpid()} on" in first
