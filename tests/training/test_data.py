"""Classes of a validation split: counted as in the training split, whatever the split's own count."""

import io

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny_models import with_running_statistics
from tiny_run import TINY, config

from diffusion_bridge_vq import GumbelVQModel
from diffusion_bridge_vq.training import PriorConfig, VQConfig, build_objective
from diffusion_bridge_vq.training.data import make_loader, open_images, preview_images
from diffusion_bridge_vq.training.monitoring.validation import make_validation


class Numbers(torch.utils.data.Dataset):
    """As many images as one likes, each its own number."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        assert 0 <= index < self.count
        return {"images": torch.tensor(index)}


def test_previews_are_from_all_over_the_set():
    """Also of sets whose numbers float32 doesn't have; a small one is shown once."""
    for count in (5, 33, 2**24 + 4, 2**31 + 1):
        found = preview_images(Numbers(count), 32)
        assert found[0] == 0 and found[-1] == count - 1 and len(found.unique()) == len(found) == min(32, count)


def write(folder, split: str, labels: list[str | None]) -> None:
    """One parquet file; the images are gray, 10 times the letter's place in the alphabet."""
    images = []
    for label in labels:
        buffer = io.BytesIO()
        shade = 10 * "abcd".index(label) if label else 0
        PILImage.fromarray(np.full((8, 8), shade, np.uint8)).save(buffer, "png")
        images.append({"bytes": buffer.getvalue(), "path": None})
    columns, features = {"image": images}, {"image": Image()}
    if None not in labels:
        columns["label"], features["label"] = labels, Value("string")
    folder.mkdir(exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize("cls", [VQConfig, PriorConfig])
def test_balanced_classes_are_learned_from_equally_often(cls, tmp_path):
    """9, 4 and 1 images: 9 + 4 * 2 + 1 * 9 rows an epoch, from images and from their cached latents."""
    write(tmp_path / "data", "train", ["a"] * 9 + ["b"] * 4 + ["c"])
    own: dict = {"dataset": str(tmp_path / "data"), "label_column": "label", "batch_size": 2}
    if cls is PriorConfig:
        folder = tmp_path / "autoencoder" / "vqvae"
        with_running_statistics(GumbelVQModel(**TINY["vqvae"], sample_size=8, in_channels=1)).save_pretrained(folder)
        own |= {"vqvae_from": folder.parent, "cache_latents": True}
    run = config(cls, tmp_path / "run", balance_classes=True, **own)
    loader = make_loader(run, Accelerator(cpu=True), build_objective(run, 3), open_images(run)).loader
    labels = [loader.dataset[row]["labels"].item() for row in range(len(loader.dataset))]
    assert [labels.count(label) for label in range(3)] == [9, 8, 9] and len(loader) == 13
    without = config(cls, tmp_path / "other", balance_classes=True, **own | {"label_column": None})
    with pytest.raises(ValueError, match="has no classes to balance: give `label_column`"):
        make_loader(without, Accelerator(cpu=True), build_objective(without), open_images(without))
    assert not (tmp_path / "other").exists()  # refused before anything is encoded
    with pytest.raises(ValueError, match="doesn't work with a stream"):
        config(cls, tmp_path / "run", balance_classes=True, streaming=True, **own)


def validation(folder, **options):
    options = {"label_column": "label", "class_conditional": True} | options
    run = config(
        PriorConfig, folder / "run", dataset=str(folder), init_from=folder, validation_split="validation", **options
    )
    images = open_images(run)
    return images, make_validation(run, Accelerator(), images)


def test_classes_go_by_their_names(tmp_path):
    write(tmp_path, "train", ["c", "a", "b"])
    write(tmp_path, "validation", ["c", "b", "b"])
    images, found = validation(tmp_path)
    (batch,) = found.loader
    assert images.labels.tolist() == [2, 0, 1] and batch["labels"].tolist() == [2, 1, 1]
    assert torch.equal(batch["images"][:, 0, 0, 0].long(), 10 * batch["labels"])  # the shade is the training class
    # without a class-conditional prior nobody looks at the classes
    (batch,) = validation(tmp_path, class_conditional=False)[1].loader
    assert batch["labels"].tolist() == [1, 0, 0]


def test_classes_that_the_prior_does_not_know(tmp_path):
    write(tmp_path, "train", ["a", "b"])
    write(tmp_path, "validation", ["b", "d", "c"])
    words = r"2 classes .*'validation' are unknown.*: c, d\. Expected .*'train', a, b\. .*drop `class_conditional`"
    with pytest.raises(ValueError, match=words):
        validation(tmp_path)
    validation(tmp_path, class_conditional=False)


def test_a_validation_split_without_labels(tmp_path):
    (tmp_path / "images").mkdir()
    for split in ("train", "validation"):
        for name in "ab" if split == "train" else "":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            PILImage.new("L", (8, 8)).save(tmp_path / "images" / split / name / "1.png")
    (tmp_path / "images" / "validation").mkdir()
    PILImage.new("L", (8, 8)).save(tmp_path / "images" / "validation" / "1.png")
    with pytest.raises(ValueError, match="'validation' has no labels"):
        validation(tmp_path / "images", label_column=None)


def test_the_csv_layout_has_other_classes_in_every_split(tmp_path):
    (tmp_path / "images").mkdir()
    for split, label in (("train", "n01"), ("val", "n02")):
        PILImage.new("L", (8, 8)).save(tmp_path / "images" / f"{label}.png")
        (tmp_path / f"{split}.csv").write_text(f"filename,label\n{label}.png,{label}\n")
    with pytest.raises(ValueError, match=r"unknown to the prior: n02\. Expected those of 'train', n01"):
        validation(tmp_path, label_column=None)
