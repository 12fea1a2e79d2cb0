"""Steps within a time, with a clock that counts what was computed."""

import pytest
from tiny_models import autoencoder_settings, unet_settings

from diffusion_bridge_vq.training import E2EConfig, VQConfig, time_budget
from diffusion_bridge_vq.training.objectives import E2EObjective, VQObjective

TINY = {"vqvae": autoencoder_settings(), "batch_size": 2}


@pytest.fixture
def costs(charge):
    charge(VQObjective, lambda objective: 0.5)
    return charge(E2EObjective, lambda objective: 1.0 if objective.frozen else 4.0)


def test_steps_are_seconds_over_cost(costs, tmp_path):
    config = VQConfig.from_preset("digits", output_dir=tmp_path, **TINY)
    assert time_budget.steps_within(config, 60) == 120
    accumulating = VQConfig.from_preset("digits", output_dir=tmp_path, gradient_accumulation_steps=3, **TINY)
    assert time_budget.steps_within(accumulating, 60) == 40


def test_phases_of_an_end_to_end_run_count_by_their_share(costs, tmp_path):
    """Frozen from the middle on: half of the steps cost 4, half 1."""
    settings = TINY | {"unet": unet_settings(sample_size=8), "freeze_fraction": 0.5, "joint_fraction": 0.0}
    settings["mode"] = "stable"
    config = E2EConfig.from_preset("digits", output_dir=tmp_path, max_train_steps=600, **settings)
    assert time_budget.steps_within(config, 250) == 100
    assert set(costs) == {1.0, 4.0}


def test_no_time(tmp_path):
    with pytest.raises(ValueError, match="positive"):
        time_budget.steps_within(VQConfig.from_preset("digits", output_dir=tmp_path), 0)
