"""Metrics of models that draw from images: each draw is made from the condition of its own test image."""

import math

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features
from diffusers import UNet2DModel
from PIL import Image
from tiny_models import make_gray_pipeline, unet_settings

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    METRICS,
    EvaluationConfig,
    ModelOutputs,
    RealImages,
    SampleStore,
    code_metrics,
    evaluate_pipelines,
    read_results,
    real_images,
    run_metrics,
)
from diffusion_bridge_vq.evaluation.paper_masks import paper_mask
from diffusion_bridge_vq.sampling import generators_for

N = 20


class Copies(UNet2DModel):
    """Predicts the latents of the image that it is given, whatever the noise."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        given = sample[:, self.config.out_channels : -1]
        image = F.pixel_shuffle(given, math.isqrt(given.shape[1]))
        return self.encode(F.interpolate(image, size=(16, 16), mode="nearest"))


def make(condition: str, map_channels: int, unet: type[UNet2DModel] = UNet2DModel, classes: int | None = None):
    """Gray images 16 x 16, latents 4 x 4 of 2 channels; the network predicts z_0."""
    parts = make_gray_pipeline()
    torch.manual_seed(0)
    arguments = unet_settings(sample_size=4, in_channels=2 + map_channels, out_channels=2, num_class_embeds=classes)
    network = unet(**arguments).eval()
    network.encode = lambda images: parts.vqvae.encode(images).latents
    names = None if classes is None else {number: str(number) for number in range(classes - 1)}
    scheduler = OUBridgeScheduler(num_train_timesteps=20, prediction_type="sample")
    return DiffusionBridgeVQPipeline(parts.vqvae, network, scheduler, names, condition=condition)


def features(images: torch.Tensor) -> torch.Tensor:
    """Four features that need no network."""
    return F.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def make_real(count: int = N, copies: bool = False) -> RealImages:
    splits = [load_images("digits", resolution=16, channels=1, split=split) for split in ("train", "test")]
    if copies:  # a column of conditions with the images themselves
        splits[1].conditions = load_images("digits", resolution=16, channels=1, split="test")
    return RealImages("digits", *splits, count, "quarters", "cpu")


def outputs_of(pipe, real, folder, **settings) -> ModelOutputs:
    config = EvaluationConfig(**{"num_inference_steps": 3, "solver": "ddim", "num_train_images": 50} | settings)
    return ModelOutputs("bridge", pipe, real, SampleStore(folder / "figures.safetensors"), config, batch_size=6)


@pytest.mark.parametrize("condition", ["column:copy", "low-resolution:8"])
def test_a_condition_that_determines_the_image(condition, tmp_path, monkeypatch):
    """
    Samples are the reconstructions, one by one, and the likelihoods have their closed forms. Of the second condition
    the images are made of 2 x 2 equal pixels.
    """
    for name, value in (("TIMING_REPEATS", 1), ("TIMING_BATCH", 1), ("ELBO_TIMESTEPS", 1), ("KL_IMAGES", 7)):
        monkeypatch.setattr(code_metrics, name, value)
    monkeypatch.setattr(real_images, "load_extractor", lambda name, device: features)
    real = make_real(copies=condition == "column:copy")
    if condition == "low-resolution:8":
        small = F.avg_pool2d(real.test.float(), 2).round().byte()
        real.test = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    pipe = make(condition, 17 if condition == "column:copy" else 5, Copies)
    outputs = outputs_of(pipe, real, tmp_path, num_nll_images=8, num_nll_samples=1)
    run_metrics(METRICS, outputs, tmp_path)
    found = {result["name"]: result for result in read_results(tmp_path / "results.json")}
    value = {name: result["value"] for name, result in found.items()}

    assert torch.equal(outputs.sampled_codes(N), outputs.test_codes)
    assert value["frechet"] == pytest.approx(0, abs=1e-3) and value["precision"] == value["recall"] == 1
    assert value["kl"] == 0 < value["kl_floor"]
    assert value["near_train_pixels"] == value["near_train_pixels_reconstructions"]
    assert found["class_accuracy"]["by_class"] == found["class_accuracy_reconstructions"]["by_class"]
    latents, codes = (real_images.evenly(rows, 8) for rows in (outputs.test_latents, outputs.test_codes))
    hidden = paper_mask("center", 4, 4)
    nats = F.cross_entropy(pipe.vqvae.quantize.logits(latents).movedim(-1, 1), codes, reduction="none")
    assert value["nll"] == pytest.approx(nats[:, hidden].mean().item() / math.log(2), rel=1e-3)
    betas, std = pipe.scheduler.betas, pipe.scheduler.stationary_std
    normalizer = 0.5 * math.log2(2 * math.pi * float(betas[0]) * std**2)
    assert value["elbo_prior"] == pytest.approx(2 * 4 * 4 / 16**2 * normalizer, rel=1e-4)
    assert all(
        (result.get("condition") == condition) == bool(METRICS[result["metric"]].needs) for result in found.values()
    )

    pipe.unet.encode = lambda images: pipe.vqvae.decode_codes(
        pipe.vqvae.encode_codes(pipe.vqvae.encode(images).latents)
    )
    given, generators = real_images.evenly(outputs.conditions, 8), outputs.generators(slice(0, 8))
    of_network = outputs.prior.code_errors(codes, generators, given)[:, :, 1]  # where the schedule has the noise level
    assert of_network.isfinite().sum() > 0 and of_network[of_network.isfinite()].max() < 1e-6
    of_others = outputs.prior.code_errors(codes, generators, given.flip(0))[:, :, 1]
    assert of_others[of_others.isfinite()].mean() > 0.1


def test_with_guidance_each_has_the_class_of_its_image(tmp_path):
    """Codes drawn by hand with the pipeline, from one image at a time."""
    real, pipe = make_real(8), make("low-resolution:8", 5, classes=11)
    torch.nn.init.normal_(pipe.unet.class_embedding.weight, std=10)
    assert len(set(real.test_labels.tolist())) > 2
    guided, plain = (outputs_of(pipe, real, tmp_path, guidance_scale=scale, seed=3) for scale in (2.5, 0))
    given = F.avg_pool2d(real.test.float(), 2).round().byte()
    for outputs, options in ((guided, {"guidance_scale": 2.5}), (plain, {"guidance_scale": 1.0})):
        found = outputs.sampled_codes(8)
        for number in (0, 3, 7):
            if outputs is guided:
                options["class_labels"] = str(int(real.test_labels[number]))
            latents = pipe(
                condition=given[number],
                generator=generators_for(3, [number]),
                output_type="latent",
                num_inference_steps=3,
                solver="ddim",
                **options,
            ).images
            assert torch.equal(found[number], pipe.vqvae.encode_codes(latents)[0])
    assert guided.condition_facts == plain.condition_facts and guided.sampling_facts["guidance_scale"] == 2.5


def write_table(folder, edges_seed: int) -> str:
    """Six images of noise, always the same, and others in a column of edges."""
    rows = {}
    for name, seed in (("photo", 0), ("edges", edges_seed)):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 16, 16), dtype=np.uint8)
        rows[name] = [Image.fromarray(image) for image in pixels]
    folder.mkdir()
    for split in ("train", "test"):
        table = Dataset.from_dict(rows, features=Features(dict.fromkeys(rows, datasets.Image())))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_the_column_is_read_and_other_images_in_it_are_measured_anew(tmp_path):
    """After a model without a condition, whose figures of the same images stay."""
    make_gray_pipeline().save_pretrained(tmp_path / "plain")
    make("column:edges", 17).save_pretrained(tmp_path / "drawn")
    folders = {name: tmp_path / name for name in ("plain", "drawn")}
    for data, edges_seed in (("one", 1), ("two", 2)):
        evaluate_pipelines(
            folders,
            write_table(tmp_path / data, edges_seed),
            tmp_path / "results",
            EvaluationConfig(num_images=6, num_inference_steps=2, solver="ddim"),
            ("kl", "reconstruction"),
            dataset_name="noise",
            image_column="photo",
        )
    found = read_results(tmp_path / "results" / "results.json")
    counts = {(m, n): sum((r["model"], r["name"]) == (m, n) for r in found) for m in folders for n in ("kl", "psnr")}
    assert counts == {("plain", "kl"): 1, ("plain", "psnr"): 1, ("drawn", "kl"): 2, ("drawn", "psnr"): 1}


def test_data_without_what_is_drawn_from(tmp_path):
    with pytest.raises(ValueError, match=r"draws from images .column:edges.: load the test images with `condition"):
        outputs_of(make("column:edges", 17), make_real(), tmp_path)
    real = make_real()
    real.test_labels = None
    with pytest.raises(ValueError, match="bridge draws with classes, but the data set has none"):
        outputs_of(make("low-resolution:8", 5, classes=11), real, tmp_path, guidance_scale=2.0)
    outputs_of(make("low-resolution:8", 5, classes=11), real, tmp_path)


def test_classes_that_the_model_does_not_know(tmp_path):
    """The message names model, classes and what to do, before anything is drawn."""
    real = make_real()
    last = int(real.test_labels.max())
    pipe = make("low-resolution:8", 5, classes=last + 1)  # it doesn't know the last one
    with pytest.raises(ValueError, match=f"bridge doesn't know the classes {last} of the test images: give the data"):
        outputs_of(pipe, real, tmp_path, guidance_scale=2.0)
    outputs_of(pipe, real, tmp_path)
    unnamed = DiffusionBridgeVQPipeline(**pipe.components, condition="low-resolution:8")
    with pytest.raises(ValueError, match=f"bridge has {last} classes without names, and the data set 10: give"):
        outputs_of(unnamed, real, tmp_path, guidance_scale=2.0)
    names = {"id2label": pipe.id2label, "label_words": True}
    words = DiffusionBridgeVQPipeline(**pipe.components, condition="low-resolution:8", **names)
    real.class_names = [f"{number % last} 0" for number in range(10)]
    assert outputs_of(words, real, tmp_path, guidance_scale=2.0).samples.shape == (N, 1, 16, 16)
    real.class_names[last] = "0 new"
    with pytest.raises(ValueError, match="bridge doesn't know the classes 0 new of the test images"):
        outputs_of(words, real, tmp_path, guidance_scale=2.0)


def test_a_model_of_words_draws_without_them(tmp_path):
    pipe = make_gray_pipeline()
    unet = UNet2DModel.from_config(pipe.unet.config, num_class_embeds=3).eval()
    words = DiffusionBridgeVQPipeline(pipe.vqvae, unet, pipe.scheduler, {0: "red", 1: "cat"}, label_words=True)
    with pytest.raises(ValueError, match=r"bridge draws from words, .* leave it out"):
        outputs_of(words, make_real(), tmp_path, guidance_scale=2.0)
    assert outputs_of(words, make_real(), tmp_path).samples.shape == (N, 1, 16, 16)
