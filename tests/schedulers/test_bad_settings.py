"""Settings and arguments of the scheduler that loaded and failed later, or gave NaN."""

import json
import math

import pytest
import torch

from diffusion_bridge_vq import OUBridgeScheduler

Z = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    "setting",
    [
        *({"num_train_timesteps": value} for value in (1.5, True, "20", None, 0, 10**8)),
        *({"z_star": value} for value in ([[0.0]], "0", [], None, math.nan, [0.0, "1"], True)),
        *({"theta": value} for value in ("1", None, math.nan, True)),
        *({"steps_offset": value} for value in (-1, 1.5, 1000, "1")),
        *({"beta_start": value} for value in ("0.1", None, True)),
        *({"clip_sample": value} for value in ("yes", 1)),
        *({"beta_schedule": value} for value in (None, 3, ["linear"])),
        {"prediction_type": ["sample"]},
        {"trained_betas": "abc"},
        {"lambda_max_clipped": "3"},
    ],
    ids=str,
)
def test_settings_are_refused_when_loading(tmp_path, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"`{name}`"):
        OUBridgeScheduler(**setting)
    OUBridgeScheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(ValueError, match=f"`{name}`"):
        OUBridgeScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize("steps", [1.5, 2.0, True, "3", math.nan, 2**70])
def test_numbers_of_steps(steps):
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be a whole number in 1\.\.1000"):
        OUBridgeScheduler().set_timesteps(steps)


@pytest.mark.parametrize("timesteps", [[3.7, 1.2], [], "321", [3, 3], [1, None], 5, [2**70, 1]])
def test_chosen_timesteps(timesteps):
    with pytest.raises(ValueError, match="`timesteps` must"):
        OUBridgeScheduler().set_timesteps(timesteps=timesteps)


@pytest.mark.parametrize(("t", "s"), [(3, 3), (3, 5), (torch.tensor([3, 9]), torch.tensor([2, 9])), (0, 0)])
def test_a_posterior_of_a_later_time_is_refused(t, s):
    """It was NaN."""
    with pytest.raises(ValueError, match="`prev_timestep` must be smaller"):
        OUBridgeScheduler().bridge_posterior(Z, Z, t, s)


@pytest.mark.parametrize("timestep", [1.5, "3", torch.tensor(1.5), torch.tensor([True, False]), None])
def test_timesteps_that_are_not_whole(timestep):
    with pytest.raises(ValueError, match="timesteps must be"):
        OUBridgeScheduler().add_noise(Z, Z, timestep)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_timesteps_of_every_integer_type_mean_the_same(dtype):
    scheduler, t = OUBridgeScheduler(), torch.tensor([0, 127])
    z, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for call in (scheduler.signal_to_noise, scheduler.elbo_weight, lambda t: scheduler.add_noise(z, noise, t)):
        assert torch.equal(call(t.to(dtype)), call(t))


def test_nearest_levels_are_found_without_a_table_of_all_pairs():
    """As many steps as levels, at the largest number of levels: a table would take 80 GB."""
    scheduler = OUBridgeScheduler(num_train_timesteps=100_000, beta_start=1e-6, beta_end=2e-4)
    scheduler.set_timesteps(100_000, timestep_spacing="logsnr")
    assert scheduler.timesteps.tolist() == list(range(99_999, -1, -1))
