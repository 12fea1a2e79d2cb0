"""Runs that go on with another division of their steps: the images of each step stay, or the run is refused."""

import itertools
from pathlib import Path

import pytest
import torch
from tiny_run import config, stopped_at_a_checkpoint

from diffusion_bridge_vq.training import VQConfig, VQObjective, train
from diffusion_bridge_vq.training.fault_tolerance.elastic import Division, check_division, describe_division


@pytest.fixture
def steps(monkeypatch) -> list[list[bytes]]:
    """The images of each forward pass, in their order."""
    seen, forward = [], VQObjective.forward

    def spy(self, images, class_labels=None):
        seen.append([image.numpy().tobytes() for image in images])
        return forward(self, images, class_labels)

    monkeypatch.setattr(VQObjective, "forward", spy)
    return seen


def test_each_step_has_the_images_of_the_uninterrupted_run(steps, tmp_path, monkeypatch, capsys):
    """
    Three steps of 400 an epoch; divided by 50 an epoch would have six batches more. Interrupted in the second epoch by
    one that takes 50 at a time, in the third again.
    """
    train(config(VQConfig, tmp_path / "whole", max_train_steps=12, checkpoint_every=0))
    whole = [sorted(batch) for batch in steps]
    assert len(whole) == 12 and whole[0] != whole[3] and len(set(whole[0] + whole[1] + whole[2])) > 1190
    steps.clear()
    run = tmp_path / "run"
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(VQConfig, run, max_train_steps=12))
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(VQConfig, run, max_train_steps=12, resume=True, batch_size=50, gradient_accumulation_steps=8))
    out = capsys.readouterr().out
    assert "1 process x 50 x 8 images a step instead of 1 process x 400 x 1; each step has the images" in out
    assert "Noise, timesteps, dropout" in out and "updated from 50 images at a time instead of 400" in out
    train(config(VQConfig, run, max_train_steps=12, resume=True))
    parts = steps[:4] + [list(itertools.chain(*steps[i : i + 8])) for i in range(4, 36, 8)] + steps[36:]
    assert [sorted(part) for part in parts] == whole


def test_steps_of_another_size_are_refused(tmp_path):
    train(config(VQConfig, tmp_path, max_train_steps=2))
    for change in ({"batch_size": 200}, {"gradient_accumulation_steps": 2}):
        with pytest.raises(ValueError, match=r"steps of 400 images \(1 process x 400 x 1.*skipped or repeated\. Take"):
            train(config(VQConfig, tmp_path, max_train_steps=4, resume=True, **change))


OLD = Division(2, 100, 2)


@pytest.mark.parametrize(
    ("now", "epoch_images", "advice"),
    [
        (Division(3, 100, 1), 1400, "No batch size of 3 processes keeps the steps"),
        (Division(4, 100, 2), 1400, "Take `batch_size` 50 and `gradient_accumulation_steps` 2"),
        (Division(4, 100, 1), 1400, "which 400 at a time.*Take `batch_size` 50 and `gradient_accumulation_steps` 2"),
        (Division(1, 100, 3), None, "Take `batch_size` 100 and `gradient_accumulation_steps` 4"),
        (Division(8, 100, 4), 1400, "Take `batch_size` 25 and `gradient_accumulation_steps` 2"),
    ],
)
def test_what_would_change_the_images_is_refused_with_advice(now, epoch_images, advice):
    with pytest.raises(ValueError, match=advice):
        check_division(Path("step-1"), OLD, now, epoch_images)


@pytest.mark.parametrize("now", [Division(1, 200, 2), Division(1, 100, 4), Division(4, 25, 4), Division(4, 50, 2)])
def test_what_keeps_the_images_is_accepted(now):
    check_division(Path("step-1"), OLD, now, 1400)
    assert "each step has the images" in describe_division(OLD, now, False, False)[0]


def test_what_a_stream_cannot_keep_is_named():
    found = " ".join(describe_division(OLD, Division(1, 200, 2), is_stream=True, trains_autoencoder=False))
    assert "goes on with the next epoch" in found and "would have had" not in found and "Codebook" not in found
    assert describe_division(OLD, OLD, True, True) == []


def test_further_processes_have_random_numbers_of_their_own(tmp_path, monkeypatch):
    from accelerate import Accelerator

    from diffusion_bridge_vq.training.fault_tolerance import checkpoint

    module, accelerator = torch.nn.Linear(2, 2), Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(module.parameters())
    checkpoint.save_checkpoint(tmp_path, accelerator, {"model": module}, optimizer, {"step": 3}, 1)
    drawn = []
    for process in (0, 1, 2, 1):
        monkeypatch.setattr(Accelerator, "process_index", process)
        torch.manual_seed(7)
        checkpoint.load_newest(tmp_path, accelerator, {"model": module}, optimizer)
        drawn.append(torch.rand(4).tolist())
    assert drawn[1] == drawn[3] and len({tuple(numbers) for numbers in drawn}) == 3
