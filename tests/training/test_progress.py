"""What a run shows while it trains, with a clock of ours, and that showing it changes nothing."""

import re

import pytest
from tiny_run import assert_same_state, config

from diffusion_bridge_vq.training import E2EConfig, VQConfig, build_objective, train
from diffusion_bridge_vq.training.monitoring import progress, screen
from diffusion_bridge_vq.training.monitoring.quantities import duration, number_of_weights, size

PHASES = {"mode": "stable", "joint_fraction": 0.25, "freeze_fraction": 0.75}


class Clock:
    """Every look at it takes a second."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self) -> float:
        self.seconds += 1.0
        return self.seconds


def test_the_estimate_comes_from_the_runs_own_steps_and_changes_nothing(tmp_path, capsys, monkeypatch):
    """Weights and random numbers are bit for bit those of a run that prints no estimate."""
    with monkeypatch.context() as patch:
        patch.setattr(progress, "_ESTIMATE_SECONDS", 0.0)
        train(config(E2EConfig, tmp_path / "with", **PHASES))
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("estimate") and "from steps" in line]
    assert line.endswith("from steps 2 to 3 (other phases take other times)")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "_FEWEST_STEPS", 1000)
        train(config(E2EConfig, tmp_path / "without", **PHASES))
    assert "from steps" not in capsys.readouterr().out
    assert_same_state(tmp_path / "with", tmp_path / "without", 8, ("model", "ema", "optimizer", "random-0"))


def test_without_a_terminal_there_are_lines(tmp_path, capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    train(config(VQConfig, tmp_path))
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err
    lines = [line for line in captured.out.splitlines() if line.startswith("step ")]
    pattern = r"step (\d)/8 \((\d+)%\)  reconstruction \d+\.\d{4}  codebook \d+\.\d{4}  .+ per step  (ETA .+|done)"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [match and (match[1], match[2]) for match in found] == [("2", "25"), ("4", "50"), ("6", "75"), ("8", "100")]
    assert [match and match[3] == "done" for match in found] == [False, False, False, True]


@pytest.mark.parametrize(
    ("limit", "steps", "words"),
    [
        (None, 100, "2 s per step, 3 min in all; first pictures after 60 s, samples after 2 min; memory 1.0 GiB"),
        (100, 100, "2 s per step, 2 min in all (`max_train_time`: about 50 steps); first pictures after 60 s; memory"),
        (None, 20, "2 s per step, 40 s in all; first pictures after 40 s; memory"),
    ],
)
def test_what_a_run_takes(tmp_path, limit, steps, words):
    """Grids at steps 30, 60, ...; samples from 40 % on: step 40 of 100, 20 of the 50 that fit into 100 s."""
    settings = {"max_train_steps": steps, "max_train_time": limit, "image_every": 30, "joint_fraction": 0.4}
    run = config(E2EConfig, tmp_path, **settings)
    assert words in screen.describe_estimate(run, build_objective(run), 2.0, 1024**3)


def test_phases_of_end_to_end_training(tmp_path):
    settings = {"max_train_steps": 100, "joint_fraction": 0.2}
    adversarial = {"adversarial_weight": 0.1, "adversarial_fraction": 0.5}
    stable = config(E2EConfig, tmp_path, mode="stable", freeze_fraction=0.8, **settings, **adversarial)
    assert build_objective(stable).phases() == {
        0: "vqvae",
        20: "vqvae and unet",
        50: "vqvae and discriminator and unet",
        80: "unet",
    }
    decoder = config(E2EConfig, tmp_path, **settings)
    assert build_objective(decoder).phases() == {0: "vqvae", 20: "decoder and unet"}
    paper = config(E2EConfig, tmp_path, mode="paper", max_train_steps=100)
    assert build_objective(paper).phases() == {0: "vqvae and unet"}


def test_quantities():
    assert [duration(s) for s in (0.0312, 9.99, 45, 89, 90, 3000, 5400, 90000, 172800)] == [
        "0.0312 s", "9.99 s", "45 s", "89 s", "2 min", "50 min", "1.5 h", "25.0 h", "2.0 days"
    ]  # fmt: skip
    assert [size(n) for n in (5 * 1024**2, 3 * 1024**3)] == ["5 MiB", "3.0 GiB"]
    assert [number_of_weights(n) for n in (640, 2900, 938_000, 7_400_000)] == ["640", "2.9K", "0.9M", "7.4M"]
