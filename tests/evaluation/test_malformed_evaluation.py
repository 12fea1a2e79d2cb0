"""Every public function, with each argument replaced by values that make no sense: an error that explains itself."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_arguments import check_arguments

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq import evaluation as ev
from diffusion_bridge_vq.evaluation.paper_masks import paper_mask
from diffusion_bridge_vq.evaluation.results import describe_device
from diffusion_bridge_vq.evaluation.tables import all_results
from diffusion_bridge_vq.toy.networks import MixtureDenoiser, SequenceVQModel


def good_calls() -> dict:
    """{name: (function, arguments that it accepts)}; paths are left out."""
    torch.manual_seed(0)
    scheduler = OUBridgeScheduler(3, trained_betas=[0.1, 0.3, 0.5], prediction_type="sample")
    network = MixtureDenoiser(torch.zeros(1, 2, 3), 0.5, scheduler).eval()
    vqvae = SequenceVQModel(2, 4).eval()
    sequences, codes = torch.randn(2, 2, 3), torch.randint(4, (2, 3))
    rows, other = torch.randn(9, 3), torch.randn(8, 3)
    images = torch.rand(2, 1, 12, 12)
    bridge = {"unet": network, "scheduler": scheduler, "quantizer": vqvae.quantize, "codes": codes, "generator": None}

    class Uniform:
        def log_prob(self, codes):
            return torch.full(codes.shape, -1.0)

    hidden = {"mask": torch.ones(3), "num_samples": 1, "num_inference_steps": 3, "class_labels": None}
    elbo = {"vqvae": vqvae, "unet": network, "scheduler": scheduler, "images": sequences, "generator": None}
    return {
        "bridge_code_bits": (ev.bridge_code_bits, bridge | {"batch_size": 2, "class_labels": None}),
        "bridge_elbo": (
            ev.bridge_elbo,
            elbo | {"timesteps_per_image": 1, "variance": 0.1, "batch_size": 2, "class_labels": None},
        ),
        "bridge_nll": (
            ev.bridge_nll,
            bridge | hidden | {"latents": sequences, "jump_length": 1, "jump_n_sample": 1},
        ),
        "code_kl": (ev.code_kl, {"codes": codes, "reference_codes": codes, "num_codes": 4}),
        "code_perplexity": (ev.code_perplexity, {"codes": codes, "num_codes": 4}),
        "code_usage": (ev.code_usage, {"codes": codes, "num_codes": 4}),
        "describe_device": (describe_device, {"device": "cpu"}),
        "extract": (
            ev.extract,
            {"extractor": lambda x: x.float().flatten(1), "images": (images * 255).byte(), "batch_size": 2},
        ),
        "frechet_distance": (ev.frechet_distance, {"features": rows, "reference": other}),
        "load_extractor": (ev.load_extractor, {"name": "efficientnet-lite0", "device": "cpu"}),
        "novelty": (ev.novelty, {"samples": rows, "train": other, "test": rows, "quantile": 0.1}),
        "train_classifier": (
            ev.train_classifier,
            {"features": rows, "labels": torch.arange(9) % 2, "num_classes": 2},
        ),
        "paper_mask": (paper_mask, {"name": "center", "height": 4, "width": 4}),
        "paper_tables": (ev.paper_tables, {"results": []}),
        "all_results": (all_results, {"results": []}),
        "pixelcnn_nll": (ev.pixelcnn_nll, {"prior": Uniform(), "codes": codes, "mask": torch.ones(3)}),
        "precision_recall": (ev.precision_recall, {"features": rows, "reference": other, "k": 2}),
        "psnr": (ev.psnr, {"images": images, "reference": images}),
        "ssim": (ev.ssim, {"images": images, "reference": images}),
        "seconds_per_sample": (
            ev.seconds_per_sample,
            {"draw": lambda: None, "batch_size": 1, "repeats": 1, "warmup": 0, "device": "cpu"},
        ),
        "wilson_interval": (ev.wilson_interval, {"successes": 1, "trials": 2, "confidence": 0.9}),
        "EvaluationConfig": (
            ev.EvaluationConfig,
            dataclasses.asdict(ev.EvaluationConfig()),
        ),
    }


CALLS = good_calls()


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_make_no_sense(name):
    check_arguments(*CALLS[name])


def test_numpy_arrays_come_with_the_remedy():
    with pytest.raises(TypeError, match=r"`features` must be a torch.Tensor \(n, d\), got .*torch.from_numpy"):
        ev.frechet_distance(np.ones((9, 3)), torch.randn(9, 3))


@pytest.mark.parametrize("labels", [torch.zeros(1, dtype=torch.long), torch.zeros(5, dtype=torch.long)])
@pytest.mark.parametrize("name", ["bridge_code_bits", "bridge_elbo", "bridge_nll"])
def test_labels_that_are_too_few_or_too_many(name, labels):
    """Before, batches without labels were left out of the mean."""
    function, good = CALLS[name]
    with pytest.raises(ValueError, match=f"one label per image, 2, got {len(labels)}"):
        function(**good | {"class_labels": labels})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 5}, "`figures` must be"),
        ({"n": -1}, "`n` must be at least 1"),
        ({"n": 1.5}, "`n` must be a whole number, got 1.5"),
        ({"seed": None}, "`seed` must be a whole number, got None"),
        ({"device": "toaster"}, "`device` must be a device such as 'cpu' or 'cuda', got 'toaster'"),
        ({"value": math.nan}, "JSON"),
    ],
)
def test_results_that_make_no_sense(tmp_path, arguments, message):
    good = {"name": "kl", "value": 0.5, "n": 1, "seed": 0}
    with pytest.raises((ValueError, TypeError), match=message):
        ev.append_result(tmp_path / "results.json", **good | arguments)
    assert not list(tmp_path.iterdir())


def test_models_and_images_of_another_kind():
    config, store = ev.EvaluationConfig(), ev.SampleStore(Path("figures.safetensors"))
    with pytest.raises(TypeError, match="`evaluated` must be of type GumbelVQModel or VQPipeline, got None"):
        ev.ModelOutputs("model", None, None, store, config)
    with pytest.raises(TypeError, match="`train` must be of type ImageDataset, got a Tensor"):
        ev.RealImages("images", torch.zeros(5, 3, 8, 8), torch.zeros(5, 3, 8, 8), 1, "inception", "cpu")
    with pytest.raises(TypeError, match="`outputs` must be of type ModelOutputs, got None"):
        ev.run_metrics(("kl",), None, Path())
    with pytest.raises(ValueError, match=r"Metrics are .*, got speed\."):
        ev.run_metrics(("speed",), None, Path())


def test_fingerprints_are_of_components():
    with pytest.raises(TypeError, match="`components` must be of type ConfigMixin, got 'cat'"):
        ev.fingerprint("cat")


def test_a_number_of_codes_that_would_take_all_memory():
    with pytest.raises(ValueError, match="`num_codes` must be at most 16777216, got 1099511627776"):
        ev.code_usage(torch.zeros(3, dtype=torch.long), 2**40)
