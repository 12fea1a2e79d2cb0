"""Runs whose prior draws from images."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from tiny_run import TINY, assert_same_state, config, stopped_at_a_checkpoint

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.data import ImageCondition
from diffusion_bridge_vq.models import ConditionedUNet, condition_map
from diffusion_bridge_vq.models.denoiser import call_network
from diffusion_bridge_vq.pipelines import save_components
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, PriorConfig, build_objective, train
from diffusion_bridge_vq.training.trainer import Trainer

SHORT = {
    "batch_size": 4,
    "max_train_steps": 4,
    "checkpoint_every": 2,
    "random_flip": True,
    "condition": "column:edges",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    """Eight images of noise, each with another one, in two splits."""
    folder, rng = tmp_path_factory.mktemp("table"), torch.Generator().manual_seed(0)
    noise = torch.randint(256, (2, 8, 8, 8), generator=rng, dtype=torch.uint8).numpy()
    rows = {
        name: [Image.fromarray(image) for image in images]
        for name, images in zip(("photo", "edges"), noise, strict=True)
    }
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=Features({name: ImageFeature() for name in rows})).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    return str(folder)


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory) -> Path:
    """A run with all of its parts."""
    folder = tmp_path_factory.mktemp("run")
    components = train(config(E2EConfig, folder, dataset=table, validation_split="test", image_every=4, **SHORT))
    run = RunFolder(folder)
    save_components(components, run, condition=run.read_condition())
    return folder


def test_from_a_run_to_calls(trained):
    """The condition is saved with the model; losses of a validation split and a grid of rows are written."""
    run = RunFolder(trained)
    assert run.read_condition() == "column:edges"
    assert any("validation/prior" in line for line in run.read_metrics())
    assert run.newest_grid("samples") is not None
    pipe = DiffusionBridgeVQPipeline.from_pretrained(run.pipeline)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.condition == "column:edges"
    assert pipe.unet.config.in_channels == 4 + 2 * 2 + 1  # 8 x 8 pixels on 4 x 4 positions
    assert len(pipe(condition=torch.rand(2, 1, 8, 8), num_inference_steps=2, guidance_scale=2.0).images) == 2


def test_resumed_bit_for_bit(trained, table, tmp_path, monkeypatch):
    options = {"dataset": table, "validation_split": "test", **SHORT}
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(E2EConfig, tmp_path, **options))
    train(config(E2EConfig, tmp_path, resume=True, **options))
    assert_same_state(tmp_path, trained, 4, ("model", "ema"))


def test_another_condition_is_no_way_to_resume(trained, table):
    options = {"dataset": table, "image_column": "photo", **SHORT | {"condition": "low-resolution:4"}}
    with pytest.raises(ValueError, match="condition 'low-resolution:4' instead of 'column:edges'"):
        train(config(E2EConfig, trained, resume=True, **options))


def test_condition_and_image_are_mirrored_alike():
    images = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8)
    trainer = SimpleNamespace(config=SimpleNamespace(random_flip=True), label_table=None)
    inputs = Trainer.inputs(trainer, {"images": images, "conditions": images})
    assert torch.equal(inputs["images"], inputs["condition"])
    mirrored = (inputs["images"] != images.float() / 127.5 - 1).flatten(1).any(dim=1)
    assert 16 < mirrored.sum() < 48


def make_objective(folder: Path, classes: int | None = 3, **options):
    run = config(
        E2EConfig, folder, **{"condition": "low-resolution:4", "class_conditional": classes is not None} | options
    )
    return build_objective(run, classes, None if classes is None else ["cat", "dog", "fox"][:classes])


def test_a_fraction_is_learned_without_condition_and_class(tmp_path):
    """A third of 400 has neither; others have no class by its own dropout. In validation nothing is dropped."""
    objective = make_objective(tmp_path, condition_dropout=1 / 3, class_dropout=0.2)
    calls = []

    def shown(latents, condition, class_labels):
        unet, labels = type(objective)._shown(objective, latents, condition, class_labels)
        calls.append((unet.condition, labels))
        return unet, labels

    objective._shown = shown
    images = torch.rand(400, 1, 8, 8) * 2 - 1
    given = objective.find_condition(images, None)
    latents, times = torch.randn(400, 4, 4, 4), torch.zeros(400, dtype=torch.long)
    for mode in (True, False):
        objective.train(mode)
        with torch.no_grad():
            objective.bridge_loss(latents, times, torch.zeros_like(latents), torch.zeros(400, dtype=torch.long), given)
    (maps, labels), (all_maps, all_labels) = calls
    whole = condition_map(given, 4)
    without = (maps == 0).flatten(1).all(dim=1)
    assert 0.25 < without.float().mean() < 0.42
    assert torch.equal(maps[~without], whole[~without])
    assert (labels[without] == 3).all() and 0.1 < (labels[~without] == 3).float().mean() < 0.3
    assert torch.equal(all_maps, whole) and (all_labels == 0).all()


def test_losses_depend_on_the_condition(tmp_path):
    """What is made of the images may be given, too."""
    objective = make_objective(tmp_path, None, mode="decoder", joint_fraction=0.5).eval()
    objective.set_step(7)
    images, other = torch.rand(2, 4, 1, 8, 8) * 2 - 1

    def loss(condition):
        torch.manual_seed(0)
        return objective(images, condition=condition).losses["prior"].item()

    assert loss(None) == loss(objective.condition.derive(images)) != loss(objective.condition.derive(other))
    objective.draw_from(ImageCondition("column:edges", 1, 8))
    with pytest.raises(ValueError, match="comes from the data set: the batch must have it"):
        objective(images)
    with pytest.raises(ValueError, match=r"draws from images \(column:edges\), but the batch has none"):
        objective.bridge_loss(torch.zeros(1, 4, 4, 4), torch.zeros(1, dtype=torch.long), torch.zeros(1, 4, 4, 4), None)


# --------------------------------------------------------------------------------------------------- fine-tuning

X, T = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])


@torch.no_grad()
def predict(unet, condition: torch.Tensor | None) -> torch.Tensor:
    return call_network(unet if condition is None else ConditionedUNet(unet, condition), X, T)


def start(folder: Path, place: Path, condition: str | None, **options):
    settings = {name: {} for name in TINY} | {"init_from": place, "condition": condition, **options}
    return build_objective(config(E2EConfig, folder, **settings))


def test_a_condition_goes_on_or_begins_anew(trained, tmp_path):
    """At step 0: the same with the same condition; as before without any, where it is another one, or none."""
    old = DiffusionBridgeVQPipeline.from_pretrained(trained).unet.eval()
    shown = condition_map(torch.rand(2, 1, 8, 8), 4)
    without = predict(old, torch.zeros_like(shown))
    same = start(tmp_path, trained, "column:edges")
    assert same.start == f"The U-Net in {trained} goes on."
    torch.testing.assert_close(predict(same.unet.eval(), shown), predict(old, shown))
    other = start(tmp_path, trained, "low-resolution:4")
    assert (
        "no longer draws from images (column:edges). It learns to draw from images (low-resolution:4)" in other.start
    )
    torch.testing.assert_close(predict(other.unet.eval(), condition_map(torch.rand(2, 1, 4, 4), 4)), without)
    none = start(tmp_path, trained, None)
    assert none.start.endswith("It no longer draws from images (column:edges).")
    torch.testing.assert_close(predict(none.unet.eval(), None), without)
    another = start(tmp_path, trained, "column:lines")  # of the same shape
    torch.testing.assert_close(predict(another.unet.eval(), shown), without)


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "sepia"}, "`condition` must be gray, low-resolution:SIDE or column:NAME"),
        ({"condition": "gray"}, "'gray' of gray images is the image itself"),
        ({"condition": "low-resolution:4", "condition_dropout": 1.0}, "would never show a condition"),
        ({"condition": "low-resolution:4", "code_posterior": True}, "takes no `condition`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(PriorConfig, tmp_path, vqvae_from="x", **options)


def test_a_condition_between_two_sizes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="16 x 16 pixels doesn't fit latents of 24 x 24"):
        build_objective(config(E2EConfig, tmp_path, resolution=48, condition="low-resolution:16"))
