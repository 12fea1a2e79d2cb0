"""The loop on a few real digits: resumed runs, averaged weights, faults. CPU, tiny networks."""

import json

import gradient_work
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from run_example import run_example
from safetensors.torch import load_file
from tiny_run import SETTINGS, TINY, assert_same_state, logged, state, stopped_at_a_checkpoint
from tiny_run import small_config as config
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.training import E2EConfig, PriorConfig, Trainer, VQConfig, train
from diffusion_bridge_vq.training import trainer as trainer_module
from diffusion_bridge_vq.training.fault_tolerance.endings import Endings


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(tmp_path, accumulation, monkeypatch):
    """Stopped after step 4 or 5, in the middle of an epoch, through the joint and the frozen phase, with flips."""
    overrides = {"gradient_accumulation_steps": accumulation, "random_flip": True, "joint_fraction": 0.25}
    overrides |= {"mode": "stable", "freeze_fraction": 0.75, "max_train_steps": 10, "checkpoint_every": 5}
    train(config(E2EConfig, tmp_path / "whole", **overrides))

    with stopped_at_a_checkpoint(monkeypatch):
        train(config(E2EConfig, tmp_path / "parts", **overrides))
    torch.manual_seed(123)  # what happens between must not matter
    train(config(E2EConfig, tmp_path / "parts", resume=True, **overrides))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 10, ("model", "ema", "optimizer", "random-0"))


def test_stages_and_what_they_leave(tmp_path):
    """
    vq, then prior on its frozen autoencoder (cached and not), then e2e from the pipeline; all files where promised.
    """
    train(config(VQConfig, tmp_path / "vq"))["vqvae"].save_pretrained(tmp_path / "vq" / "vqvae")
    assert (tmp_path / "vq" / "reconstructions-000008.png").exists()
    losses = {}
    for cached in (False, True):
        folder = tmp_path / f"prior-{cached}"
        trained = train(config(PriorConfig, folder, init_from=tmp_path / "vq", cache_latents=cached))
        losses[cached] = logged(folder, "loss/prior")
        assert (folder / "samples-000008.png").exists()
        start = load_file(tmp_path / "vq" / "vqvae" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(v, start[k]) for k, v in trained["vqvae"].state_dict().items() if k in start)
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)  # the same latents, in the same order
    pipe = DiffusionBridgeVQPipeline(**trained)
    pipe.save_pretrained(tmp_path / "prior-True" / "pipeline")

    continued = train(config(E2EConfig, tmp_path / "e2e", init_from=tmp_path / "prior-True", learning_rate=1e-12))
    for key, value in continued["unet"].state_dict().items():  # nothing learned: still the weights it started from
        assert torch.allclose(value, trained["unet"].state_dict()[key], atol=1e-6)


def test_averaged_weights_are_the_average_of_parameters_and_buffers(tmp_path, monkeypatch):
    """EMA recomputed from the raw states after every step, codebook and normalizer included; and torch's own."""
    seen, peer = [], []
    original = trainer_module.AveragedWeights.update_parameters

    def spy(self, model, *decay):
        seen.append({k: v.detach().clone().double() for k, v in model.state_dict().items()})
        if not peer:
            peer.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True))
        peer[0].update_parameters(model)
        return original(self, model, *decay)

    monkeypatch.setattr(trainer_module.AveragedWeights, "update_parameters", spy)
    train(config(VQConfig, tmp_path, ema_decay=0.7, max_train_steps=4))
    average = seen[0]
    for raw in seen[1:]:
        average = {k: 0.7 * v + 0.3 * raw[k] for k, v in average.items()}
    saved = state(tmp_path, 4, "ema")
    assert {"vqvae.quantize.embedding.weight", "vqvae.normalizer.running_var", "vqvae.encoder.conv_in.weight"} <= set(
        average
    )
    for key, value in average.items():
        assert torch.allclose(saved[f"module.{key}"].double(), value, atol=1e-5), key
        assert torch.allclose(saved[f"module.{key}"], peer[0].state_dict()[f"module.{key}"], atol=1e-6), key


@pytest.mark.parametrize("log_every", [1, 5])
def test_nan_stops_with_the_step_and_loses_nothing(tmp_path, monkeypatch, log_every):
    """Looked for at once or, as on a GPU, steps later: saved is the state from before the bad step, and it goes on."""
    original, before = Trainer.inputs, {}

    def poisoned(self, batch):
        inputs = original(self, batch)
        if self.lr_scheduler.last_epoch == 6:  # step 7
            before.update({k: v.clone() for k, v in self.trained.state_dict().items()})
            inputs["images"][0] = float("nan")
        return inputs

    if log_every > 1:
        look = Endings.if_not_finite
        monkeypatch.setattr(Endings, "if_not_finite", lambda self, done: done % 5 or look(self, done))
    overrides = {"max_train_steps": 20, "log_every": log_every, "checkpoint_every": 5}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "inputs", poisoned)
        with pytest.raises(FloatingPointError, match=r"Step 7 gave reconstruction.*reconstruction = nan"):
            train(config(VQConfig, tmp_path, **overrides))
    done = 7 if log_every == 1 else 10
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", f"step-{done:08d}"]
    saved = state(tmp_path, done, "model")
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    assert all(torch.isfinite(v).all() for v in state(tmp_path, done, "ema").values() if v.is_floating_point())
    moments = state(tmp_path, done, "optimizer")
    assert {v.item() for k, v in moments.items() if k.endswith(".step")} == {6}
    monkeypatch.undo()
    trained = train(config(VQConfig, tmp_path, resume=True, **overrides))
    assert all(torch.isfinite(p).all() for p in trained["vqvae"].parameters())


@pytest.mark.parametrize("name", gradient_work.OBJECTIVES)
def test_what_is_trained_is_saved(name):
    """A weight that the optimizer moves and no checkpoint holds would be lost when the run is resumed."""
    objective = gradient_work.OBJECTIVES[name]()
    learning = {id(p) for p in objective.parameters() if p.requires_grad}
    assert learning and learning <= {id(p) for p in objective.trained_part().parameters()}


def test_refusals(tmp_path):
    train(config(VQConfig, tmp_path / "vq", max_train_steps=4))
    with pytest.raises(ValueError, match="already holds checkpoints"):
        train(config(VQConfig, tmp_path / "vq"))
    with pytest.raises(ValueError, match="no checkpoint"):
        train(config(VQConfig, tmp_path / "other", resume=True))
    with pytest.raises(ValueError, match="doesn't fit this model"):
        train(config(VQConfig, tmp_path / "vq", resume=True, vqvae={"latent_channels": 6}))
    with pytest.raises(ValueError, match="no autoencoder"):
        train(config(PriorConfig, tmp_path / "p", init_from=tmp_path / "nothing"))
    with pytest.raises(ValueError, match="fewer than one batch"):
        train(config(VQConfig, tmp_path / "b", batch_size=4000))
    with pytest.raises(ValueError, match="in_channels=out_channels=4"):
        train(config(E2EConfig, tmp_path / "u", unet={"in_channels": 3, "out_channels": 3}))
    with pytest.raises(ValueError, match="doesn't take these arguments"):
        train(config(E2EConfig, tmp_path / "a", scheduler={"gamma": 3}))


@pytest.mark.parametrize(
    "engine, version, kind, message",
    [
        ("DEEPSPEED", 0, VQConfig, r"DEEPSPEED.*multi_gpu\.yaml"),
        ("FSDP", 1, PriorConfig, r"fsdp_version: 2.*got 1"),
        ("FSDP", 2, VQConfig, r"vq trains the autoencoder.*multi_gpu\.yaml"),
        ("FSDP", 2, E2EConfig, r"e2e trains the autoencoder.*multi_gpu\.yaml"),
        ("MEGATRON_LM", 0, VQConfig, r"MEGATRON_LM is not supported here.*multi_gpu\.yaml"),
    ],
)
def test_engines_that_would_split_what_must_be_whole_are_refused(
    tmp_path, monkeypatch, engine, version, kind, message
):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType[engine])
    monkeypatch.setattr(Accelerator, "is_fsdp2", version == 2)
    with pytest.raises(ValueError, match=message):
        train(config(kind, tmp_path, init_from=tmp_path))


def test_a_dry_run_tries_all_phases_and_writes_nothing(tmp_path, capsys):
    """What takes most memory, or can't be done, may come late."""
    phases = {
        "mode": "stable",
        "joint_fraction": 0.4,
        "freeze_fraction": 0.6,
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.1,
    }
    assert train(config(E2EConfig, tmp_path / "dry", dry_run=True, **phases)) is None
    out = capsys.readouterr().out
    terms = out.rpartition("gave ")[2]
    assert all(f"{name} " in terms for name in ("reconstruction", "prior", "adversarial", "discriminator"))
    assert "nothing was written" in out
    assert not (tmp_path / "dry").exists()


@pytest.mark.slow
def test_the_command_line_makes_a_pipeline(tmp_path):
    """examples/train_e2e.py and sample.py as a user runs them; --resume of a finished run changes nothing."""
    settings = {**SETTINGS, "max_train_steps": 4}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    options += [f"--vqvae={json.dumps(TINY['vqvae'])}", f"--unet={json.dumps(TINY['unet'])}"]

    def run(script: str, *arguments: str) -> str:
        done = run_example(script, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("train_e2e.py", "--preset=digits", f"--output-dir={tmp_path}", *options)
    weights = (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    run("train_e2e.py", "--preset=digits", f"--output-dir={tmp_path}", "--resume", *options)
    assert (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert {"curves.png", "metrics.jsonl", "config.json", "samples-000004.png"} <= {p.name for p in tmp_path.iterdir()}
    sheet = tmp_path / "sheet.png"
    out = run(
        "sample.py", str(tmp_path / "pipeline"), "--num-images=5", "--num-inference-steps=2", f"--output={sheet}"
    )
    assert sheet.exists() and "5 images" in out
