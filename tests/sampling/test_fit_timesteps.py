"""Timesteps that are fitted to a network, on the toy with its exact denoiser."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_pipeline, make_words_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.commands import fit_timesteps as command
from diffusion_bridge_vq.sampling import fit_timesteps, sample_latents
from diffusion_bridge_vq.toy.networks import MixtureDenoiser
from diffusion_bridge_vq.toy.walks import NOISE_STD, all_toy_sequences, toy_codebook


def test_fitted_steps_end_nearer_to_the_solution_from_other_noise_too():
    scheduler = OUBridgeScheduler(beta_schedule="squaredcos_cap_v2", eta=3.0, prediction_type="sample")
    network = MixtureDenoiser(toy_codebook()[all_toy_sequences()].transpose(1, 2), NOISE_STD, scheduler)
    found = fit_timesteps(network, scheduler, torch.randn(64, 2, 5, generator=rng()), [4])[4]
    assert found.error < 0.7 * found.error_before
    fresh = torch.randn(400, 2, 5, generator=rng(1))
    fitted = OUBridgeScheduler.from_config(scheduler.config, few_step_timesteps={4: found.timesteps})

    def solve(own, steps, **kwargs):
        return sample_latents(network, own, fresh.shape, steps, latents=fresh, **kwargs)

    solution = solve(scheduler, 200)
    before, after = ((solve(own, 4) - solution).square().mean().sqrt() for own in (scheduler, fitted))
    assert after < 0.8 * before
    assert torch.equal(solve(fitted, 4, timestep_spacing="logsnr"), solve(scheduler, 4))  # an explicit call stays


def test_more_steps_than_the_reference_are_refused():
    with pytest.raises(ValueError, match=r"`numbers` must be a whole number in 1\.\.7, got 8"):
        fit_timesteps(torch.nn.Identity(), OUBridgeScheduler(), torch.randn(1, 2, 5), [8], num_reference_steps=8)


def test_one_step_has_nothing_to_fit():
    with pytest.raises(ValueError, match="one step can only begin at noise"):
        fit_timesteps(torch.nn.Identity(), OUBridgeScheduler(), torch.randn(1, 2, 5), [4, 1])


def test_a_student_keeps_its_own():
    student = OUBridgeScheduler(prediction_type="sample", few_step_timesteps={1: [999]}, distilled_guidance_scale=1.0)
    with pytest.raises(ValueError, match="knows its own steps only: fit those of its teacher"):
        fit_timesteps(torch.nn.Identity(), student, torch.randn(1, 2, 5), [2])


def test_guidance_without_classes_is_refused(tmp_path, monkeypatch, capsys):
    make_pipeline(prediction_type="sample").save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit_timesteps.py", str(tmp_path), "--guidance-scale", "2"])
    with pytest.raises(SystemExit):
        command.main()
    assert "This model has no classes: leave out --guidance-scale." in capsys.readouterr().err


def test_the_command_saves_them(tmp_path, monkeypatch, capsys):
    pipe = make_pipeline(classes=3, prediction_type="sample")
    pipe.save_pretrained(tmp_path)
    weights = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    monkeypatch.setattr(sys, "argv", ["fit_timesteps.py", str(tmp_path), "--steps", "2", "--num-samples", "4"])
    command.main()
    saved = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())["few_step_timesteps"]
    assert list(saved) == ["2"] and str(saved["2"]) in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in weights.items())
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    loaded(num_inference_steps=2, output_type="latent")
    assert loaded.scheduler.timesteps.tolist() == saved["2"]


def test_steps_are_not_fitted_to_nan(tmp_path):
    """A guidance scale of 1e38 gave steps with an error of nan, which were saved."""
    unet = make_pipeline(classes=3).unet
    labels = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"NaN or infinite with `guidance_scale` 1e\+38"):
        fit_timesteps(unet, OUBridgeScheduler(prediction_type="sample"), torch.randn(1, 3, 3, 3), [2], labels, 1e38)


def test_words_are_those_of_the_examples(tmp_path, monkeypatch, capsys):
    """A single word, of which the model has seen no image, isn't what steps are fitted for."""
    given, found = [], {2: SimpleNamespace(timesteps=[10, 5], error=0.0, error_before=0.0)}
    monkeypatch.setattr("diffusion_bridge_vq.sampling.fit_timesteps", lambda *call: given.append(call) or found)
    monkeypatch.setattr(sys, "argv", ["fit_timesteps.py", str(tmp_path), "--steps", "2", "--num-samples", "3"])
    make_words_pipeline(["Red cat", "dog"]).save_pretrained(tmp_path)
    command.main()
    assert given[0][4].tolist() == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0]]  # blue, cat, dog, red, null
    make_words_pipeline().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert '"label_examples": {"0": "TEXT"}' in capsys.readouterr().err
