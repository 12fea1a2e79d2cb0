"""The baseline's training: its objective, early stopping on held-out images, and runs through the loop."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from tiny_run import TINY, assert_same_state, logged, state, stopped_at_a_checkpoint

from diffusion_bridge_vq import GumbelVQModel, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.cli import parse_config
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.training import (
    PRESETS,
    PixelCNNConfig,
    PixelCNNObjective,
    VQConfig,
    train,
)
from diffusion_bridge_vq.training.data import hold_out
from diffusion_bridge_vq.training.monitoring.early_stopping import EarlyStopping

VQVAE = TINY["vqvae"]
SETTINGS = {
    "resolution": 8,
    "batch_size": 256,
    "max_train_steps": 8,
    "lr_warmup_steps": 2,
    "log_every": 2,
    "image_every": 0,
    "checkpoint_every": 4,
    "report_to": "none",
    "vqvae": VQVAE,
}


@pytest.fixture(scope="module")
def vq(tmp_path_factory) -> Path:
    """A folder with an autoencoder that has seen a little: 8 codes at 4 x 4 positions."""
    folder = tmp_path_factory.mktemp("vq")
    settings = SETTINGS | {"checkpoint_every": 0}
    train(VQConfig.from_preset("digits", output_dir=folder, **settings))["vqvae"].save_pretrained(folder / "vqvae")
    return folder


def config(vq: Path, folder: Path, **overrides) -> PixelCNNConfig:
    prior = {"width": 8, "num_layers": 2, "dropout": 0.1} | overrides.pop("prior", {})
    values = SETTINGS | {"eval_every": 2, "patience": 3, "holdout_fraction": 0.1, "prior": prior} | overrides
    return PixelCNNConfig.from_preset("digits", output_dir=folder, init_from=vq, **values)


# -------------------------------------------------------------------------------------------------- the objective


def make_objective(vq: Path, **kwargs) -> PixelCNNObjective:
    prior = PixelCNNPrior(8, width=8, num_layers=2, kernel_size=3, sample_size=4, **kwargs)
    return PixelCNNObjective(GumbelVQModel.from_pretrained(vq / "vqvae"), prior, class_dropout=1.0)


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_loss_is_the_cross_entropy_of_the_nearest_codes(vq):
    objective = make_objective(vq).train()
    assert not objective.vqvae.training
    output = objective(IMAGES)
    z_e = objective.vqvae.encode(IMAGES).latents
    codes = torch.cdist(z_e.movedim(1, -1), objective.vqvae.quantize.embedding.weight.expand(4, 4, 8, 4)).argmin(-1)
    probabilities = objective.prior(codes).logits.double().softmax(dim=1).gather(1, codes[:, None])
    nats = -probabilities.log().mean().item()
    assert output.losses["cross_entropy"].item() == pytest.approx(nats, rel=1e-5)
    assert output.metrics["bits_per_code"].item() == pytest.approx(nats / math.log(2), rel=1e-5)
    assert torch.equal(objective(codes=codes).losses["cross_entropy"], output.losses["cross_entropy"])
    output.losses["cross_entropy"].backward()
    assert all(p.grad is None for p in objective.vqvae.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in objective.prior.parameters())


def test_dropped_labels_train_the_null_class(vq):
    objective, labels = make_objective(vq, num_class_embeds=4).train(), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="label_column"):
        objective(IMAGES)

    def used() -> list[bool]:
        objective.zero_grad()
        objective(IMAGES, labels).losses["cross_entropy"].backward()
        return (objective.prior.layers[0].classes.weight.grad.abs().sum(1) > 0).tolist()

    assert used() == [False, False, False, True]
    objective.class_dropout = 0.0
    assert used() == [True, True, True, False]


def test_a_markov_field_is_learned_to_near_its_entropy():
    """
    Codes are the left one plus the one above mod 3 with probability 0.8, else one of the two others; outside the map
    they are 0. What is left of the loss, against the true law on the same fresh maps, is an estimate of the KL.
    """
    generator = torch.Generator().manual_seed(0)

    def field(n: int) -> torch.Tensor:
        codes = torch.zeros(n, 5, 5, dtype=torch.long)  # row 0 and column 0 are the outside
        errors = torch.multinomial(torch.tensor([0.8, 0.1, 0.1]), n * 16, True, generator=generator).reshape(n, 4, 4)
        for i in range(1, 5):
            for j in range(1, 5):
                codes[:, i, j] = (codes[:, i, j - 1] + codes[:, i - 1, j] + errors[:, i - 1, j - 1]) % 3
        return codes

    def true_nats(codes: torch.Tensor) -> float:
        right = codes[:, 1:, 1:] == (codes[:, 1:, :-1] + codes[:, :-1, 1:]) % 3
        return -torch.where(right, math.log(0.8), math.log(0.1)).mean().item()

    prior = PixelCNNPrior(3, width=16, num_layers=3, kernel_size=3, sample_size=4)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    for _ in range(150):
        loss = -prior.log_prob(field(64)[:, 1:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = field(2000)
    with torch.no_grad():
        kl = -prior.log_prob(fresh[:, 1:, 1:]).mean().item() - true_nats(fresh)
    assert math.log(3) - true_nats(fresh) > 0.4  # what there was to learn
    assert -0.003 < kl < 0.02


# ------------------------------------------------------------------------------------------------- early stopping


def test_the_best_weights_are_kept():
    model = torch.nn.Linear(1, 1)
    stopping = EarlyStopping(model, patience=2)
    assert not stopping.started
    for step, value in enumerate([3.0, 2.0, 2.5, 1.0, 1.0]):
        torch.nn.init.constant_(model.weight, step)
        stopping.update(value, model)
        assert not stopping.exhausted and stopping.started
    assert (stopping.best.weight.item(), stopping.best_value.item()) == (3.0, 1.0)
    again = EarlyStopping(model, patience=2)  # as a resumed run makes it
    again.load_state_dict(stopping.state_dict())
    again.update(1.5, model)
    assert again.exhausted and again.best.weight.item() == 3.0


def test_held_out_images_are_no_training_images():
    training, held_out = hold_out(50, 0.1, seed=1)
    assert len(held_out) == 5 and sorted([*training, *held_out]) == list(range(50))
    assert hold_out(50, 0.1, seed=1)[1] == held_out
    assert hold_out(50, 0.1, seed=2)[1] != held_out
    assert len(hold_out(5, 0.01, seed=0)[1]) == 1


def test_a_run_stops_when_patience_ends_and_gives_the_best_weights(vq, tmp_path, monkeypatch):
    """With the held-out values written by hand: best at step 4, patience 3, so it stops at step 10 of 20."""
    values, seen = iter([3.0, 2.0, 2.5, 2.2, 2.1]), []

    def scripted(self, components, inputs):
        seen.append({k: v.clone() for k, v in components["prior"].state_dict().items()})
        return next(values)

    monkeypatch.setattr(PixelCNNObjective, "held_out_score", scripted)
    trained = train(config(vq, tmp_path, max_train_steps=20, lr_warmup_steps=0))
    assert logged(tmp_path, "heldout/bits_per_code") == {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.2, 10: 2.1}
    assert not all(torch.equal(v, seen[4][k]) for k, v in trained["prior"].state_dict().items())
    assert all(torch.equal(v, seen[1][k]) for k, v in trained["prior"].state_dict().items())
    assert trained.keys() == {"vqvae", "prior"} and not trained["prior"].training
    assert {p.name for p in tmp_path.glob("*-000010.png")} == {"samples-000010.png", "reconstructions-000010.png"}
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000008", "step-00000010"]
    monkeypatch.undo()
    again = train(config(vq, tmp_path, max_train_steps=20, lr_warmup_steps=0, resume=True))  # it is over
    assert all(torch.equal(v, seen[1][k]) for k, v in again["prior"].state_dict().items())
    assert len(logged(tmp_path, "heldout/bits_per_code")) == 5


# ----------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("class_conditional", [False, True])
def test_logged_bits_are_those_of_the_saved_pipeline(vq, tmp_path, class_conditional):
    """Recomputed from the images that were held out, through the pipeline as saved and loaded again."""
    overrides = {"class_conditional": class_conditional, "random_flip": True, "learning_rate": 1e-2}
    trained = train(config(vq, tmp_path, max_train_steps=12, **overrides))
    PixelCNNVQPipeline(**trained).save_pretrained(tmp_path / "pipeline")
    pipe = PixelCNNVQPipeline.from_pretrained(tmp_path / "pipeline")
    images = load_images("digits", resolution=8, channels=1, split="train")
    _, held_out = hold_out(len(images), 0.1, seed=0)
    pixels = torch.stack([images[i]["images"] for i in held_out]).float() / 127.5 - 1
    labels = torch.stack([images[i]["labels"] for i in held_out]) if class_conditional else None
    with torch.no_grad():
        codes = pipe.vqvae.encode_codes(pipe.vqvae.encode(pixels).latents)
        bits = -pipe.prior.log_prob(codes, labels).mean().item() / math.log(2)
    scores = logged(tmp_path, "heldout/bits_per_code")
    assert list(scores) == [2, 4, 6, 8, 10, 12] and len(pixels) == 150
    assert min(scores.values()) == pytest.approx(bits, abs=1e-4)
    assert scores[12] < scores[2] < 3.2  # log2 8 = 3 bits to begin with
    assert list(logged(tmp_path, "train/bits_per_code")) == [2, 4, 6, 8, 10, 12]
    start = load_file(vq / "vqvae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(v, start[k]) for k, v in trained["vqvae"].state_dict().items() if k in start)
    images = pipe(batch_size=2, class_labels=[1, 2] if class_conditional else None, output_type="pt").images
    assert images.shape == (2, 1, 8, 8)


def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(vq, tmp_path, monkeypatch):
    overrides = {"max_train_steps": 6, "checkpoint_every": 3, "class_conditional": True}
    train(config(vq, tmp_path / "whole", **overrides))
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(vq, tmp_path / "parts", **overrides))
    torch.manual_seed(123)  # what happens between must not matter
    train(config(vq, tmp_path / "parts", resume=True, **overrides))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 6, ("model", "ema", "best", "optimizer", "random-0"))
    assert state(tmp_path / "whole", 6, "best")["best_value"].isfinite()


def test_a_dry_run_encodes_one_batch_and_writes_nothing(vq, tmp_path, capsys):
    assert train(config(vq, tmp_path / "dry", dry_run=True)) is None
    out = capsys.readouterr().out
    assert "1,500 images" in out and "10% of them held out" in out
    assert "cross_entropy" in out and "nothing was written" in out
    assert not (tmp_path / "dry").exists()


def test_refusals(vq, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_config(PixelCNNConfig, [])
    assert "train_vqvae" in capsys.readouterr().err
    for change, message in (
        ({"holdout_fraction": 0.0}, "holdout_fraction"),
        ({"holdout_fraction": 1.0}, "holdout_fraction"),
        ({"eval_every": 0}, "eval_every"),
        ({"patience": 0}, "patience"),
        ({"class_dropout": 1.5}, "class_dropout"),
    ):
        with pytest.raises(ValueError, match=message):
            config(vq, tmp_path, **change)
    for change, message in (
        ({"prior": {"num_codes": 16}}, "num_codes=8"),
        ({"prior": {"depth": 3}}, "doesn't take these arguments"),
        ({"batch_size": 1400}, "1350 images to train on, fewer than one batch of 1400"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config(vq, tmp_path / "run", dry_run=True, **change))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    chosen = PixelCNNConfig.from_preset(preset, dataset="digits", init_from=Path("x"))
    assert chosen.max_train_steps > chosen.eval_every * chosen.patience
    with init_empty_weights():
        prior = PixelCNNPrior(chosen.vqvae["num_vq_embeddings"], **chosen.prior)
    weights = sum(p.numel() for p in prior.parameters())
    if preset == "digits" or preset.endswith("-tiny"):
        assert weights < 2e6
    else:
        assert (chosen.prior["num_layers"], chosen.prior["width"]) == (15, 512)
        assert weights == pytest.approx(91.5e6, rel=0.01)
