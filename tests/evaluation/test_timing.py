"""Timing with a clock that the test moves."""

import numpy as np
import pytest
import torch

from diffusion_bridge_vq.evaluation import seconds_per_sample


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        seconds = 100.0

    monkeypatch.setattr("diffusion_bridge_vq.clock.time.perf_counter", lambda: Clock.seconds)
    return Clock


def test_median_and_quartiles_without_the_warm_up(clock):
    durations = [50.0, 40.0, 1.0, 2.0, 8.0, 3.0, 4.0]  # the first two are compilation
    calls = iter(durations)

    def draw():
        clock.seconds += next(calls)

    measured = seconds_per_sample(draw, batch_size=4, repeats=5, warmup=2)
    lower, median, upper = np.quantile(durations[2:], [0.25, 0.5, 0.75]) / 4
    assert (measured.lower_quartile, measured.median, measured.upper_quartile) == pytest.approx((lower, median, upper))
    assert (measured.batch_size, measured.repeats) == (4, 5)
    assert next(calls, None) is None


def test_one_repeat(clock):
    def draw():
        clock.seconds += 6.0

    assert seconds_per_sample(draw, batch_size=3, repeats=1, warmup=0)[:3] == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize("device", ["cuda:1", "xpu:0", "mps:0"])
def test_a_device_has_finished_whenever_the_clock_is_read(device, monkeypatch):
    events = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append(f"synchronize {device}"))
    monkeypatch.setattr("diffusion_bridge_vq.clock.time.perf_counter", lambda: events.append("clock") or 0.0)
    seconds_per_sample(lambda: events.append("draw"), repeats=2, warmup=1, device=device)
    read = [f"synchronize {device}", "clock"]
    assert events == ["draw", *2 * [*read, "draw", *read]]
    events.clear()
    seconds_per_sample(lambda: events.append("draw"), repeats=1, warmup=0)
    assert events == ["clock", "draw", "clock"]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"repeats": 0}, {"warmup": -1}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        seconds_per_sample(lambda: None, **options)
