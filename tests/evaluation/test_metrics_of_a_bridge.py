"""All metrics of one bridge, against what they are by hand."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    METRICS,
    EvaluationConfig,
    ModelOutputs,
    RealImages,
    SampleStore,
    bridge_code_bits,
    code_kl,
    code_metrics,
    frechet_distance,
    read_results,
    real_images,
    run_metrics,
)
from diffusion_bridge_vq.evaluation.priors import BridgePrior
from diffusion_bridge_vq.sampling import generators_for

N = 40


def features(images: torch.Tensor) -> torch.Tensor:
    """Four features that need no network."""
    halves = images.float().mean(dim=1).unflatten(1, (2, 8)).unflatten(3, (2, 8))
    return halves.mean(dim=(2, 4)).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def outputs(folder) -> ModelOutputs:
    """After every metric has run; the results are in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_metrics, "TIMING_REPEATS", 1)
        patch.setattr(code_metrics, "ELBO_TIMESTEPS", 2)
        patch.setattr(real_images, "load_extractor", lambda name, device: features)
        splits = (load_images("digits", resolution=16, channels=1, split=split) for split in ("train", "test"))
        real = RealImages("digits", *splits, N, "halves", "cpu")
        settings = EvaluationConfig(num_inference_steps=3, num_nll_samples=2, solver="ddim", seed=5)
        store = SampleStore(folder / "figures.safetensors")
        found = ModelOutputs("bridge", make_gray_pipeline(), real, store, settings, 16)
        run_metrics(METRICS, found, folder, preset="tiny")
    return found


@pytest.fixture(scope="module")
def found(outputs, folder) -> dict:
    return {result["name"]: result for result in read_results(folder / "results.json")}


@torch.no_grad()
def through_codes(vqvae, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstructions of uint8 images, by hand."""
    codes = vqvae.encode_codes(vqvae.encode(images.float() / 127.5 - 1).latents)
    decoded = vqvae.decode(vqvae.decode_codes(codes), force_not_quantize=True).sample
    return codes, (decoded.clamp(-1, 1).add(1) * 127.5).round().byte()


def test_results_name_the_model_the_data_and_the_draws(found):
    drawn = dict.fromkeys(("fid", "kl", "timing", "class_accuracy", "novelty"), ("ddim", 3))
    drawn["nll"] = ("ancestral", 3)
    for result in found.values():
        assert (result["model"], result["dataset"], result["preset"]) == ("bridge", "digits", "tiny")
        assert result["seed"] == 5 and result["n"] > 0 and "torch" in result["versions"]
        assert (result.get("solver"), result.get("steps")) == drawn.get(result["metric"], (None, None))


def test_reconstructions(outputs, found):
    _, reconstructions = through_codes(outputs.vqvae, outputs.real.test)
    assert torch.equal(outputs.reconstructions, reconstructions)
    expected = frechet_distance(features(reconstructions), features(outputs.real.test))
    assert found["frechet_reconstruction"]["value"] == pytest.approx(expected, rel=1e-5)
    assert found["psnr"]["n"] == N


def test_distances_of_samples_and_their_floor(outputs, found):
    _, reconstructions = through_codes(outputs.vqvae, outputs.real.test)
    _, train = through_codes(outputs.vqvae, outputs.real.train)
    for name, images in (("frechet", outputs.samples), ("frechet_floor", train)):
        expected = frechet_distance(features(images), features(reconstructions))
        assert found[name]["value"] == pytest.approx(expected, rel=1e-5)
    assert {"frechet_real", "precision", "recall"} <= found.keys()


def test_histograms_of_codes(outputs, found):
    codes, _ = through_codes(outputs.vqvae, outputs.real.test)
    expected = code_kl(outputs.sampled_codes(N), codes, 16).mean().item()
    assert found["kl"]["value"] == pytest.approx(expected) and "kl_floor" in found


def test_likelihoods(outputs, found):
    assert found["nll_joint"]["value"] <= found["nll"]["value"]  # Jensen
    codes, _ = through_codes(outputs.vqvae, outputs.real.test)
    parts = make_gray_pipeline()  # the same weights
    own = parts.unet, parts.scheduler, parts.vqvae.quantize
    bits = bridge_code_bits(*own, codes, generators_for(5, range(N)), batch_size=16)
    assert found["code_bits"]["value"] == pytest.approx(bits.mean().item())
    assert {"elbo_total", "elbo_prior", "nll_top_left"} <= found.keys()


def test_timing(found):
    assert found["seconds_per_sample"]["value"] > 0


def test_pictures_are_kept(outputs, found, folder):
    kept = load_file(folder / "figures.safetensors")
    kinds = {name.removesuffix("/bridge") for name in kept if name.endswith("/bridge")}
    assert kinds == {"samples", "nearest", "kl", "kl_floor"}
    assert torch.equal(kept["samples/bridge"], outputs.samples)


def test_a_student_is_measured_with_its_own_sampler():
    pipe = make_gray_pipeline()
    few = {"few_step_timesteps": {1: [19], 2: [19, 9]}, "distilled_guidance_scale": 1.0}
    pipe.scheduler = OUBridgeScheduler.from_config(pipe.scheduler.config, prediction_type="sample", **few)
    prior = BridgePrior("student", pipe, EvaluationConfig(num_inference_steps=2))
    assert prior.drawing_facts == {"steps": 2, "solver": "consistency"}
    assert prior.abilities == {"samples"}  # it predicts no means, which likelihoods need
    with pytest.raises(ValueError, match="distilled to draw in 1 or 2 steps, got `num_inference_steps` 3"):
        _ = BridgePrior("student", pipe, EvaluationConfig(num_inference_steps=3)).drawing_facts
