"""Phases, warm-up, learning rate and averaging follow what is really run: the steps, or the time that there is."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_run import records, state
from tiny_run import small_config as config

from diffusion_bridge_vq.training import E2EConfig, VQConfig, build_objective, train
from diffusion_bridge_vq.training.fault_tolerance import run_state, signals
from diffusion_bridge_vq.training.schedule import Schedule

LIMITED = {"max_train_steps": 1500, "max_train_time": 420}
PHASES = {"mode": "stable", "joint_fraction": 0.3, "freeze_fraction": 0.5}
LIMITED |= {"lr_warmup_steps": 100, "log_every": 1, "checkpoint_every": 0, "batch_size": 64}


@pytest.fixture
def clock(monkeypatch):
    """Sets by how many seconds the run's clock moves on at each step, the last one for all that follow."""

    def start(*seconds: float) -> None:
        steps = itertools.chain([0.0], seconds, itertools.repeat(seconds[-1]))
        monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=itertools.accumulate(steps).__next__))

    return start


def test_phases_follow_the_time_that_there_is(tmp_path, clock):
    """25 steps of 17 s instead of 1,500: the prior joins after 30 % of the time, the autoencoder ends after 50 %."""
    clock(17.0)
    run = config(E2EConfig, tmp_path, **LIMITED, **PHASES)
    components = train(run)
    logged = records(tmp_path)
    assert [r["step"] for r in logged] == list(range(1, 26))
    for record in logged:
        used = 17 * (record["step"] - 1) / 420  # when the step begins
        assert ("loss/prior" in record) == (used >= 0.3), record["step"]
        assert ("loss/reconstruction" in record) == (used < 0.5), record["step"]
    torch.manual_seed(0)
    fresh = build_objective(run).unet.state_dict()
    moved = [(fresh[name] - value).abs().max() for name, value in components["unet"].state_dict().items()]
    assert max(moved) > 1e-3


def test_the_learning_rate_follows_the_time_that_there_is(tmp_path, clock):
    clock(17.0)
    train(config(VQConfig, tmp_path, **LIMITED))
    for record in records(tmp_path):
        place = min(1500.0, 1500 * 17 * record["step"] / 420)
        rate = place / 100 if place < 100 else 0.5 * (1 + math.cos(math.pi * (place - 100) / 1400))
        assert record["train/learning_rate"] == pytest.approx(1e-3 * rate, abs=1e-6), record["step"]


def test_a_run_that_ends_before_the_prior_was_trained_has_no_result(tmp_path, clock):
    """Saved, so that it can go on; with enough time it ends with a trained prior."""
    clock(500.0)
    with pytest.raises(ValueError, match=r"ended after step 1, before unet had been trained.*step-00000001.*`resume`"):
        train(config(E2EConfig, tmp_path, **LIMITED))
    assert (tmp_path / "checkpoints" / "step-00000001").is_dir() and not (tmp_path / "pipeline").exists()
    clock(100.0)
    more = LIMITED | {"max_train_time": 1000, "resume": True}
    assert train(config(E2EConfig, tmp_path, **more)).keys() == {"vqvae", "unet", "scheduler"}


@pytest.mark.parametrize("saved", [True, False])
def test_a_higher_limit_takes_nothing_back(tmp_path, monkeypatch, capsys, saved):
    """The prior joined at step 2 of 8. In 64 it would join at step 16: encoder and codebook once went on learning."""
    run = {"joint_fraction": 0.25, "log_every": 1}
    with monkeypatch.context() as patch:
        if not saved:  # as checkpoints of 0.1.0, which don't say how far the phases were
            save = run_state.save_checkpoint
            patch.setattr(
                run_state,
                "save_checkpoint",
                lambda *args: save(*args[:4], {k: v for k, v in args[4].items() if k != "reached"}, *args[5:]),
            )
        train(config(E2EConfig, tmp_path, max_train_steps=8, **run))
    before = state(tmp_path, 8, "model")
    train(config(E2EConfig, tmp_path, resume=True, max_train_steps=64, max_train_time=1e-9, **run))
    train(config(E2EConfig, tmp_path, resume=True, max_train_steps=64, checkpoint_every=10, **run))
    assert "what has joined or is frozen stays so" in capsys.readouterr().out
    assert all(("loss/prior" in record) == (record["step"] > 2) for record in records(tmp_path))
    after = state(tmp_path, 64, "model")
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert "decoder" in moved and not moved & {"encoder", "quantize", "quant_conv", "normalizer"}


def test_seconds_add_up_over_all_starts(tmp_path, clock):
    run = {"max_train_steps": 20, "max_train_time": 100, "checkpoint_every": 3, "keep_checkpoints": 9}
    clock(30.0)
    train(config(VQConfig, tmp_path, **run))
    assert json.loads((tmp_path / "checkpoints" / "step-00000004" / "state.json").read_text())["seconds"] == 120
    (tmp_path / "checkpoints" / "step-00000004").rename(tmp_path / "moved away")
    clock(4.0)  # 90 s are used at step 3
    train(config(VQConfig, tmp_path, resume=True, **run))
    assert (tmp_path / "checkpoints" / "step-00000006").is_dir()
    assert not (tmp_path / "checkpoints" / "step-00000007").exists()


def test_steps_too_few_for_a_phase_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"`joint_fraction` 0\.96 of 10 steps leaves none for the prior"):
        build_objective(config(E2EConfig, tmp_path, joint_fraction=0.96, max_train_steps=10))


def test_the_limit_that_will_end_the_run_counts(tmp_path):
    schedule = Schedule(config(VQConfig, tmp_path, max_train_steps=100, max_train_time=50))
    places = []
    for done, seconds in ((0, 0.0), (10, 1.0), (20, 20.0), (90, 30.0), (90, 60.0)):
        schedule.seconds = seconds
        places.append((schedule.place(done), schedule.ended(done)))
    assert places == [(0, False), (10, False), (40, False), (90, False), (100, True)]


@pytest.mark.parametrize("max_train_steps, decay, share", [(25, 0.995, 1e-4), (1500, 0.995, 1e-3), (8, 0.99, 0.01)])
def test_averages_do_not_hold_the_initial_weights(tmp_path, max_train_steps, decay, share):
    """How much of the weights after the first step is in the average at the end."""
    schedule = Schedule(config(VQConfig, tmp_path, max_train_steps=max_train_steps, ema_decay=decay))
    decays = [schedule.ema_decay(step, step + 1) for step in range(1, max_train_steps)]
    assert math.prod(decays) < share
    assert (set(decays) == {decay}) == (max_train_steps == 1500)


def test_a_short_run_gives_what_it_learned(tmp_path):
    """8 steps with a decay meant for thousands: the average is nearer to the last weights than to the first ones."""
    train(config(VQConfig, tmp_path, ema_decay=0.9999, checkpoint_every=1, keep_checkpoints=9))
    name = "vqvae.encoder.conv_in.weight"
    first, last = (state(tmp_path, step, "model")[name] for step in (1, 8))
    average = state(tmp_path, 8, "ema")[f"module.{name}"]
    assert (average - last).norm() < (average - first).norm()


def test_a_step_of_the_time_is_a_step_of_the_average(tmp_path):
    """One step that takes as much of the run as sixty has the decay of sixty."""
    schedule = Schedule(config(VQConfig, tmp_path, max_train_steps=1500, ema_decay=0.995, max_train_time=25))
    assert schedule.ema_decay(60, 120) == pytest.approx(0.995**60)
