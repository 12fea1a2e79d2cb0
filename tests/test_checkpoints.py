"""The checkpoints of the repository: small, safe to load, and what they draw is what they were trained on."""

from pathlib import Path

import pytest
import torch
from sklearn.svm import SVC

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.data import load_images

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


@pytest.mark.parametrize("folder", sorted(CHECKPOINTS.iterdir()), ids=lambda folder: folder.name)
def test_files(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png"}
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert (folder / "README.md").is_file()
    assert not any(word in path.read_text() for path in files if path.suffix == ".json" for word in ("/tmp", "/home"))


def test_digits_draws_digits_of_all_ten_classes():
    """
    A classifier of real digits is mostly sure of them, and mostly not of codes drawn position by position, which have
    every statistic but what the prior is there for.
    """
    real = load_images("digits", resolution=16, channels=1, split="train")
    items = [real[i] for i in range(len(real))]
    pixels = torch.stack([item["images"] for item in items])
    labels = torch.tensor([int(item["labels"]) for item in items])
    rows = pixels.flatten(1).float() / 255
    classifier = SVC(gamma=0.02, C=10, probability=True, random_state=0).fit(rows[:1000], labels[:1000])
    assert classifier.score(rows[1000:], labels[1000:]) > 0.97

    pipe = DiffusionBridgeVQPipeline.from_pretrained(CHECKPOINTS / "digits")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(batch_size=200, generator=generator, output_type="pt").images
    with torch.no_grad():
        codes = pipe.vqvae.encode_codes(pipe.vqvae.encode(pixels.float() / 127.5 - 1).latents).flatten(1)
        mixed = codes[torch.randint(len(codes), (200, 16), generator=generator), torch.arange(16)].reshape(-1, 4, 4)
        shuffled = pipe.vqvae.decode(pipe.vqvae.decode_codes(mixed), force_not_quantize=True).sample
    sure = torch.from_numpy(classifier.predict_proba(drawn.flatten(1))).max(dim=1)
    unsure = torch.from_numpy(classifier.predict_proba(shuffled.flatten(1).clamp(-1, 1) / 2 + 0.5)).max(dim=1)
    assert (sure.values > 0.8).float().mean() > 0.6
    assert (unsure.values > 0.8).float().mean() < 0.3
    assert (sure.indices.bincount(minlength=10) >= 5).all()


def test_cifar10_small_draws_what_the_class_says():
    """In 2,000 of CIFAR-10's test images blue is .08 above red in planes and ships, .11 below it in deer and frogs."""
    pipe = DiffusionBridgeVQPipeline.from_pretrained(CHECKPOINTS / "cifar10-small")
    pipe.set_progress_bar_config(disable=True)
    labels = [0, 8, 4, 6] * 8  # airplane, ship, deer, frog
    plain = {"guidance_scale": 1.0, "output_type": "pt"}
    drawn = pipe(32, 8, torch.Generator().manual_seed(0), class_labels=labels, **plain).images
    blue = (drawn[:, 2] - drawn[:, 0]).mean(dim=(1, 2)).reshape(8, 4)
    assert (blue[:, :2].mean() - blue[:, 2:].mean()).item() == pytest.approx(0.18, abs=0.07)
