"""Signals and time limits: saved, ended, and gone on with as if nothing had happened."""

import functools
import multiprocessing
import os
import signal
from datetime import timedelta

import pytest
import torch
from tiny_run import assert_same_state, records, state
from tiny_run import small_config as config

from diffusion_bridge_vq.training import E2EConfig, Trainer, VQConfig, train
from diffusion_bridge_vq.training.fault_tolerance.signals import StopRequest

RUN = {"gradient_accumulation_steps": 2, "random_flip": True, "max_train_steps": 6, "checkpoint_every": 6}
RUN |= {"mode": "stable", "joint_fraction": 0.25, "freeze_fraction": 0.75}


def test_processes_wait_for_each_other_as_long_as_the_run_says(monkeypatch):
    """In the group in which they agree, too: the others wait there while the main one evaluates."""
    asked = []
    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    monkeypatch.setattr("torch.distributed.new_group", lambda **options: asked.append(options["timeout"]))
    StopRequest(timeout=7200)
    assert asked == [timedelta(hours=2)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, monkeypatch, capsys, number):
    """In the middle of an optimizer step; the resumed run ends bit for bit where the whole one does."""
    train(config(E2EConfig, tmp_path / "whole", **RUN))
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    original, calls = Trainer.step, []

    def interrupted(self, *args):
        original(self, *args)
        calls.append(args)
        if len(calls) == 7:  # first batch of the fourth optimizer step
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Trainer, "step", interrupted)
        train(config(E2EConfig, tmp_path / "parts", **RUN))
    assert stop.value.code == 128 + number
    assert f"{number.name}: stopped after step 4" in capsys.readouterr().out
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert [p.name for p in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-00000004"]
    train(config(E2EConfig, tmp_path / "parts", resume=True, **RUN))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 6, ("model", "ema", "optimizer", "random-0"))
    whole, parts = (records(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) == len(parts)


def test_a_signal_to_all_of_a_process_group_leaves_the_run_its_batches(tmp_path, monkeypatch):
    """At the first of 12 batches of a step, more than a worker has ready: the rest still come."""
    original, calls = Trainer.step, []

    def interrupted(self, *args):
        original(self, *args)
        calls.append(args)
        if len(calls) == 1:
            workers = [process.pid for process in multiprocessing.active_children()]
            for pid in (*workers, os.getpid()):
                os.kill(pid, signal.SIGTERM)
            assert workers

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(SystemExit) as stop:
        train(config(VQConfig, tmp_path, batch_size=50, gradient_accumulation_steps=12, num_workers=1))
    assert stop.value.code == 128 + signal.SIGTERM and len(calls) == 12
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch, request):
    """By the handler that was there before."""
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist's workers have another
    original = Trainer.step

    def impatient(self, *args):
        original(self, *args)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(config(VQConfig, tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_time_is_over(tmp_path, capsys):
    """As after the last step: grids and components; and what is left can be trained later."""
    trained = train(config(VQConfig, tmp_path, max_train_time=1e-9))
    assert "`max_train_time` is over after step 1" in capsys.readouterr().out
    assert (tmp_path / "reconstructions-000001.png").exists()
    saved = state(tmp_path, 1, "ema")
    for name, value in trained["vqvae"].state_dict().items():
        if f"module.vqvae.{name}" in saved:
            assert torch.equal(saved[f"module.vqvae.{name}"], value), name
    train(config(VQConfig, tmp_path, resume=True))
    assert (tmp_path / "checkpoints" / "step-00000008").is_dir()
    with pytest.raises(ValueError, match="max_train_time"):
        config(VQConfig, tmp_path, max_train_time=0)
