"""DeepSpeed against DistributedDataParallel, on two real processes (gloo, CPU); what is refused needs no DeepSpeed."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import process_work
import pytest
import tiny_run
import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from process_results import (
    accelerate,
    assert_it_goes_on_with_two_one_and_two,
    ended,
    same_but_for_rounding,
    seen,
)
from safetensors.torch import load_file
from warm_processes import launch

from diffusion_bridge_vq.training.distributed.accelerate import check_engine

# ----------------------------------------------------------------------------------------------------- what is refused


def engine(**plugin) -> SimpleNamespace:
    """What `check_engine` asks an accelerator."""
    return SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, is_fsdp2=False, deepspeed_plugin=DeepSpeedPlugin(**plugin)
    )


@pytest.mark.parametrize(
    "plugin, message",
    [
        ({"zero_stage": 3}, r"`zero_stage` 1 or 2, got 3.*fsdp\.yaml"),
        ({"zero_stage": 0}, r"`zero_stage` 1 or 2, got 0"),
        ({"zero_stage": 2, "offload_optimizer_device": "cpu"}, r"`offload_optimizer_device` must be none, got 'cpu'"),
        ({"hf_ds_config": {"zero_optimization": {"stage": 3}}}, r"`zero_stage` 1 or 2, got 3"),
        ({"hf_ds_config": {"zero_optimization": {"stage": 1}, "scheduler": {}}}, "config file has scheduler"),
    ],
)
def test_what_deepspeed_would_do_otherwise_is_refused(tmp_path, plugin, message):
    config = process_work.configure("prior", tmp_path, init_from=tmp_path)
    check_engine(config, engine(zero_stage=1))
    with pytest.raises(ValueError, match=message):
        check_engine(config, engine(**plugin))


def test_runs_that_deepspeed_does_not_train_are_refused(tmp_path):
    for kind in ("vq", "e2e"):
        with pytest.raises(ValueError, match=rf"{kind} trains the autoencoder.*multi_gpu\.yaml"):
            check_engine(process_work.configure(kind, tmp_path), engine(zero_stage=2))
    half = process_work.configure("pixelcnn", tmp_path, init_from=tmp_path, mixed_precision="fp16")
    with pytest.raises(ValueError, match="must be no or bf16, got fp16"):
        check_engine(half, engine(zero_stage=2))


# ---------------------------------------------------------------------------------------------------------------- runs


def needs_deepspeed(test):
    missing = importlib.util.find_spec("deepspeed") is None
    return pytest.mark.slow(pytest.mark.skipif(missing, reason="deepspeed isn't installed")(test))


STAGES = {"prior": 2, "pixelcnn": 1}
OPTIONS: dict[str, dict] = {"prior": {}, "pixelcnn": {"max_grad_norm": 0.01}}  # clipped at every step


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with an autoencoder "vq", and of each prior a run with DistributedDataParallel and one with ZeRO."""
    folder = tmp_path_factory.mktemp("runs")
    process_work.run("vq", folder / "vq", {"batch_size": 40})["vqvae"].save_pretrained(folder / "vq" / "vqvae")
    for kind, stage in STAGES.items():
        options = OPTIONS[kind] | {"init_from": folder / "vq"}
        launch(folder, process_work.run, kind, folder / f"{kind}-ddp", options)
        launch(folder, process_work.zero, stage, process_work.run, kind, folder / kind, options)
    return folder


@needs_deepspeed
@pytest.mark.parametrize("kind", STAGES)
def test_zero_learns_what_ddp_learns(runs, kind):
    (first, second), expected = seen(runs / kind), seen(runs / f"{kind}-ddp")[0]["states"]
    for step in (12, 24):
        same_but_for_rounding(first["states"][step], expected[step])
        # the second doesn't gather the moments
        assert all(torch.equal(first["states"][step][k], v) for k, v in second["states"][step].items())
        assert any(k.startswith("model.") for k in second["states"][step])
        saved = {p.name: p for p in (runs / kind / "checkpoints" / f"step-{step:08d}").iterdir()}
        peers = runs / f"{kind}-ddp" / "checkpoints" / f"step-{step:08d}"
        assert saved.keys() == {p.name for p in peers.iterdir()}
        for name in ("model", "ema", "optimizer"):
            tensors = load_file(saved[f"{name}.safetensors"])
            assert tensors.keys() == load_file(peers / f"{name}.safetensors").keys()
            assert all(torch.equal(first["states"][step][f"{name}.{k}"], v) for k, v in tensors.items())
    losses = [
        [r[n] for r in tiny_run.records(runs / name) for n in r if "loss/" in n] for name in (kind, f"{kind}-ddp")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 6


@needs_deepspeed
@pytest.mark.parametrize(
    "kind, before, after", [("prior", 2, 2), ("pixelcnn", 1, 1), ("prior", 2, 0), ("prior", 0, 1)]
)
def test_a_checkpoint_is_resumed(runs, tmp_path, kind, before, after):
    """With the same stage bit for bit where the whole run ends; with another, or without, but for rounding."""
    source = runs / (kind if before else f"{kind}-ddp")
    checkpoints = Path("checkpoints") / "step-00000012"
    shutil.copytree(source / checkpoints, tmp_path / checkpoints)
    work = (process_work.zero, after, process_work.run) if after else (process_work.run,)
    launch(tmp_path, *work, kind, tmp_path, OPTIONS[kind] | {"init_from": runs / "vq", "resume": True})
    for whole, resumed in zip(seen(source), seen(tmp_path), strict=True):
        assert all(map(torch.equal, whole["batches"][24:], resumed["batches"])) and len(resumed["batches"]) == 24
    whole, resumed = seen(source)[0]["states"][24], seen(tmp_path)[0]["states"][24]
    same_but_for_rounding(resumed, whole)
    if before == after:
        different = [key for key, value in whole.items() if not torch.equal(value, resumed[key])]
        assert not different, different[:5]


@needs_deepspeed
def test_a_run_goes_on_with_two_one_and_two_processes(runs, tmp_path):
    """Alone without DeepSpeed."""
    options = OPTIONS["prior"] | {"init_from": runs / "vq"}
    assert_it_goes_on_with_two_one_and_two("prior", runs / "prior", options, tmp_path, (process_work.zero, 2))


@needs_deepspeed
@pytest.mark.parametrize(
    "fault, stage, first, second",
    [
        ("latents", 1, "nother process", "Step 6 gave latent rms"),
        ("loss", 2, "nother process", "Step 6 gave prior not finite.*prior = nan"),
        ("gradient", 2, "Step 6 gave gradient norm", "Step 6 gave gradient norm"),
    ],
)
def test_a_bad_batch_on_one_process_leaves_the_state_before_it(runs, tmp_path, fault, stage, first, second):
    """Process 1 alone meets it in the sixth step: both stop there, and what is saved is the fifth's."""
    folder, options = tmp_path / "run", {"init_from": runs / "vq"}
    launch(tmp_path, process_work.zero, stage, process_work.run_into, fault, "prior", folder, options)
    results = [torch.load(folder / f"{rank}-of-2.pt", weights_only=True) for rank in range(2)]
    for result, message in zip(results, (first, second), strict=True):
        assert re.search(message, result["message"])
        saved = tiny_run.state(folder, 6, "model")
        assert result["before"].keys() == saved.keys()
        assert all(torch.equal(result["before"][name], value) for name, value in saved.items())
    moments = tiny_run.state(folder, 6, "optimizer")
    assert {value.item() for key, value in moments.items() if key.endswith(".step")} == {5}
    assert all(value.isfinite().all() for value in moments.values())


@needs_deepspeed
def test_the_configuration_trains(runs, tmp_path):
    """As launched, with the setting that the CPU is an accelerator."""
    launched = accelerate(process_work.__file__, "deepspeed", str(tmp_path), str(runs / "vq"), config="deepspeed.yaml")
    done = ended(launched, 600)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (seen(folder)[0]["states"][24] for folder in (tmp_path, runs / "prior"))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
