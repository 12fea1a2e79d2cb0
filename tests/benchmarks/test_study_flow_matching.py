"""benchmarks/study_flow_matching.py: what its arms change, against diffusers' own draws."""

import sys

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from benchmarks import study_flow_matching
from diffusion_bridge_vq import OUBridgeScheduler

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize("eta", [2**0.5, 3.0])
def test_logit_normal_times_have_the_signal_to_noise_of_diffusers_draws(eta):
    """Quantiles of the log SNR, for every scale of the noise."""
    scheduler = OUBridgeScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", eta=eta)
    probabilities = study_flow_matching.logit_normal(scheduler)
    drawn = torch.multinomial(probabilities, 100_000, replacement=True)
    found = scheduler.signal_to_noise(drawn).double().log()
    sigma = compute_density_for_timestep_sampling("logit_normal", 100_000, logit_mean=0.0, logit_std=1.0).double()
    wanted = 2 * ((1 - sigma) / sigma).log()
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert found.quantile(level).item() == pytest.approx(wanted.quantile(level).item(), abs=0.06)


def test_each_arm_changes_what_it_names(data):
    arms = {name: row(data) for name, row in study_flow_matching.ARMS.items() if name != "flow-matching"}
    objectives = {name: row.learner.objective for name, row in arms.items()}
    own = objectives["bridge"]
    scale = own.scheduler.config.eta
    wanted = {  # prediction, weighting, eta, times
        "bridge": ("sample", "simple", scale, False),
        "velocity": ("v_prediction", "simple", scale, False),
        "min-snr": ("sample", "min_snr", scale, False),
        "logit-normal": ("sample", "simple", scale, True),
        "scale-1": ("sample", "simple", 2**0.5, False),
        "logit-normal-velocity": ("v_prediction", "simple", scale, True),
        "all-three": ("v_prediction", "simple", 2**0.5, True),
        "logit-normal-min-snr": ("sample", "min_snr", scale, True),
        "clamped": ("sample", "clamped_snr", scale, False),
    }
    found = {
        name: (
            each.scheduler.config.prediction_type,
            each.weighting,
            each.scheduler.config.eta,
            each.draw.__qualname__ != own.draw.__qualname__,
        )
        for name, each in objectives.items()
    }
    assert found == wanted


def test_the_study_of_flow_matching_runs_with_tiny_networks(tmp_path, monkeypatch, capsys):
    options = ["--steps", "2", "--num-images", "60", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["study", *options])
    study_flow_matching.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(study_flow_matching.ARMS)
