"""Options of a run that must not change what is learned, and what they write."""

import functools
import json
import math
import shutil

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TINY, assert_same_state, logged, records, state, stopped_at_a_checkpoint
from tiny_run import small_config as config
from torch import nn
from torch.autograd.profiler_util import EventList

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import during_training, evaluation_of, read_results, real_images
from diffusion_bridge_vq.models import LatentNormalizer, blockwise
from diffusion_bridge_vq.training import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, train
from diffusion_bridge_vq.training import run as run_module
from diffusion_bridge_vq.training.monitoring.profiling import profile_steps

PHASES = {"mode": "stable", "joint_fraction": 0.25, "freeze_fraction": 0.75}


@pytest.fixture
def any_precision():
    """Accelerate keeps one precision per process; what this gives forgets it, and so does the end of the test."""
    forget = functools.partial(AcceleratorState._reset_state, reset_partial_state=True)
    yield forget
    forget()


def records_of(folder, prefix):
    """Those with a metric whose name begins so."""
    return [r for r in records(folder) if any(key.startswith(prefix) for key in r)]


def assert_same_run(one, other, step=8):
    assert_same_state(one, other, step, ("model", "ema", "optimizer", "random-0"))


def test_validation_is_the_loss_of_what_the_run_returns(tmp_path):
    overrides = {"validation_split": "test", "validate_every": 3, "ema_decay": 0.5}
    trained = train(config(VQConfig, tmp_path / "with", **overrides))
    found = records_of(tmp_path / "with", "validation/")
    assert [r["step"] for r in found] == [3, 6, 8]
    images = load_images("digits", resolution=8, channels=1, split="test")
    x = torch.stack([images[i]["images"] for i in range(len(images))]).float() / 127.5 - 1
    with torch.no_grad():
        z_q, codebook, _ = trained["vqvae"].quantize(trained["vqvae"].encode(x).latents)
        pixels = trained["vqvae"].decode(z_q, force_not_quantize=True).sample
    expected = (pixels - x).square().mean() + 0.1 * (pixels - x).abs().mean()  # the preset's l1_weight
    assert found[-1]["validation/reconstruction"] == pytest.approx(expected.item(), rel=1e-4)
    assert found[-1]["validation/codebook"] == pytest.approx(codebook.item(), rel=1e-4)
    train(config(VQConfig, tmp_path / "without", ema_decay=0.5))
    assert_same_run(tmp_path / "with", tmp_path / "without")


def test_validation_draws_the_same_noise_each_time(tmp_path):
    """Weights that don't change have one value, though the loss is a draw; and the run itself draws as without."""
    train(config(VQConfig, tmp_path / "vq"))["vqvae"].save_pretrained(tmp_path / "vq" / "vqvae")
    still = {"init_from": tmp_path / "vq", "ema_decay": 0.0, "learning_rate": 1e-30}
    train(config(PriorConfig, tmp_path / "with", validation_split="test", validate_every=2, **still))
    found = records_of(tmp_path / "with", "validation/")
    assert len(found) == 4 and len({r["validation/prior"] for r in found}) == 1
    rates = list(logged(tmp_path / "with", "train/learning_rate").values())
    assert len(rates) > 1 and all(0 < rate <= 1e-30 for rate in rates[:-1])
    train(config(PriorConfig, tmp_path / "without", **still))
    assert_same_run(tmp_path / "with", tmp_path / "without")


@pytest.fixture
def mean_colors(monkeypatch):
    """Four mean colors, in place of features that have to be downloaded."""
    features = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    for module in (real_images, during_training):
        monkeypatch.setattr(module, "load_extractor", lambda *_: lambda images: features(images.float()))


@pytest.mark.parametrize("condition", [None, "low-resolution:4"])
def test_evaluation_at_an_interval(condition, tmp_path, mean_colors):
    larger = {"resolution": 16, "max_train_steps": 4}  # SSIM has a window of 11
    train(config(VQConfig, tmp_path / "vq", **larger))["vqvae"].save_pretrained(tmp_path / "vq" / "vqvae")
    larger["unet"] = {**TINY["unet"], "sample_size": 8}
    larger["condition"] = condition
    overrides = {"init_from": tmp_path / "vq", "validation_split": "test", **larger}
    with pytest.raises(ValueError, match="validation_split"):
        config(PriorConfig, tmp_path / "no", init_from=tmp_path / "vq", evaluate_every=4)
    assert evaluation_of(config(PriorConfig, tmp_path / "no", **overrides)) is None
    too_few = config(PriorConfig, tmp_path / "few", evaluate_every=3, evaluate_images=4, **overrides)
    with pytest.raises(ValueError, match="4, but the Frechet distance of 4 features by inception needs 5"):
        evaluation_of(too_few)
    evaluated = config(PriorConfig, tmp_path / "with", evaluate_every=3, evaluate_images=32, **overrides)
    train(evaluated, evaluation_of(evaluated))
    found = records_of(tmp_path / "with", "evaluation/")
    assert [r["step"] for r in found] == [3, 4]
    saved = read_results(tmp_path / "with" / "evaluation" / "results.json")
    assert {r.get("condition") for r in saved if r["name"] == "frechet"} == {condition}
    last = {r["name"]: r["value"] for r in saved if r["step"] == 4}
    assert {"frechet", "frechet_reconstruction", "kl", "psnr", "usage_samples"} <= last.keys()
    assert all(found[-1][f"evaluation/{name}"] == pytest.approx(value, rel=1e-6) for name, value in last.items())
    train(config(PriorConfig, tmp_path / "without", init_from=tmp_path / "vq", **larger))
    assert_same_run(tmp_path / "with", tmp_path / "without", 4)


def test_evaluation_of_a_pixelcnn_at_an_interval(tmp_path, mean_colors):
    larger = {"resolution": 16, "max_train_steps": 4}
    train(config(VQConfig, tmp_path / "vq", **larger))["vqvae"].save_pretrained(tmp_path / "vq" / "vqvae")
    own = {"prior": {"width": 8, "num_layers": 2}, "init_from": tmp_path / "vq", "validation_split": "test"}
    evaluated = {"evaluate_every": 3, "evaluate_images": 32, "log_every": 2, "checkpoint_every": 0, "image_every": 0}
    options = {"split": "test", "batch_size": 80, "report_to": "none", **larger, **own, **evaluated}
    run = PixelCNNConfig.from_preset("digits", output_dir=tmp_path / "run", **options)
    train(run, evaluation_of(run))
    assert [r["step"] for r in records_of(tmp_path / "run", "evaluation/")] == [3, 4]


def test_only_the_main_process_reads_the_images_of_an_evaluation(tmp_path, mean_colors, monkeypatch):
    own = {"init_from": tmp_path, "validation_split": "test", "evaluate_every": 3, "evaluate_images": 32}
    run = config(PriorConfig, tmp_path / "run", **own)
    monkeypatch.setattr(during_training, "load_images", None)
    monkeypatch.setenv("RANK", "1")
    assert evaluation_of(run)({}, 3) == {}
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(TypeError, match="not callable"):
        evaluation_of(run)


def test_gradient_checkpointing_gives_the_same_run_from_less_memory(tmp_path):
    saved_bytes = {}
    for on in (False, True):
        count = [0]

        def pack(tensor, count=count):
            count[0] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            overrides = {"max_train_steps": 4, "mode": "stable", "joint_fraction": 0.0}
            train(config(E2EConfig, tmp_path / str(on), gradient_checkpointing=on, **overrides))
        saved_bytes[on] = count[0]
    assert saved_bytes[True] < 0.7 * saved_bytes[False]
    for name, value in state(tmp_path / "False", 4, "model").items():
        assert torch.allclose(state(tmp_path / "True", 4, "model")[name].float(), value.float(), atol=1e-5), name


def test_compiling_changes_neither_names_nor_weights(tmp_path, monkeypatch):
    """Through all phases; with the backend that runs the traced graph as it is."""
    original, compiled = nn.Module.compile, []

    def traced(self, *args, **kwargs):
        compiled.append(type(self).__name__)
        return original(self, *args, backend="eager", **kwargs)

    monkeypatch.setattr(nn.Module, "compile", traced)
    train(config(E2EConfig, tmp_path / "compiled", compile=True, **PHASES))
    assert sorted(compiled) == ["Decoder", "Encoder", "UNet2DModel"]
    train(config(E2EConfig, tmp_path / "plain", **PHASES))
    plain = state(tmp_path / "plain", 8, "model")
    with_it = state(tmp_path / "compiled", 8, "model")
    assert plain.keys() == with_it.keys()
    assert all(torch.allclose(plain[name].float(), with_it[name].float(), atol=1e-5) for name in plain)


def test_half_precision_keeps_statistics_and_distances_in_float32(tmp_path, monkeypatch, any_precision):
    """Networks compute in half precision; what normalizes and chooses codes doesn't, and the run ends alike."""
    seen = {"networks": set(), "statistics": set(), "distances": set()}
    conv, statistics = nn.Conv2d.forward, LatentNormalizer._batch_statistics
    logits = blockwise.negative_squared_distances

    def spy_conv(self, x):
        y = conv(self, x)
        seen["networks"].add(y.dtype)
        return y

    def spy_statistics(z):
        seen["statistics"].add(z.dtype)
        return statistics(z)

    def spy_logits(rows, codebook):
        result = logits(rows, codebook)
        seen["distances"].add(result.dtype)
        return result

    train(config(E2EConfig, tmp_path / "float", **PHASES))
    any_precision()
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "forward", spy_conv)
        patch.setattr(LatentNormalizer, "_batch_statistics", staticmethod(spy_statistics))
        patch.setattr(blockwise, "negative_squared_distances", spy_logits)
        train(config(E2EConfig, tmp_path / "half", mixed_precision="bf16", **PHASES))
    # grids and the codebook's start are made in float32
    assert torch.bfloat16 in seen["networks"] and seen["statistics"] == seen["distances"] == {torch.float32}
    pairs = zip(records_of(tmp_path / "float", "loss/"), records_of(tmp_path / "half", "loss/"), strict=True)
    assert all(b["loss/prior"] == pytest.approx(a["loss/prior"], rel=0.1) for a, b in pairs if "loss/prior" in a)
    assert {t.dtype for t in state(tmp_path / "half", 8, "ema").values()} == {torch.float32}


def test_a_resumed_run_has_the_options_of_its_own_start(tmp_path, monkeypatch):
    """With next to no learning rate all that moves a weight is the decay, by a tenth of it a step."""
    settings = {"lr_schedule": "constant", "lr_warmup_steps": 0, "log_every": 1}
    train(config(VQConfig, tmp_path, max_train_steps=4, **settings))
    train(config(VQConfig, tmp_path, resume=True, learning_rate=1e-30, weight_decay=1e29, **settings))
    before, after = (state(tmp_path, step, "model")["vqvae.encoder.conv_in.weight"] for step in (4, 8))
    assert torch.allclose(after, 0.9**4 * before, rtol=1e-5)
    assert [r["train/learning_rate"] for r in records_of(tmp_path, "loss/")] == [0.001] * 4 + [1e-30] * 4
    # and the schedule is where it was, of another height
    schedule = {"max_train_steps": 8, "log_every": 1, "lr_warmup_steps": 0, "checkpoint_every": 1}
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(VQConfig, tmp_path / "half", **schedule))
    train(config(VQConfig, tmp_path / "half", resume=True, learning_rate=0.5, **schedule))
    found = [r["train/learning_rate"] for r in records_of(tmp_path / "half", "loss/")]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(1, 9)]
    assert found == pytest.approx([1e-3 * cosine[0], *(0.5 * height for height in cosine[1:])], abs=1e-6)


def test_a_run_goes_on_in_fp16(tmp_path, monkeypatch):
    """With a gradient scaler, which the run before had no need of."""
    train(config(VQConfig, tmp_path, max_train_steps=4))
    make = run_module.make_accelerator

    def scaled(settings):
        accelerator = make(settings)
        accelerator.scaler = torch.amp.GradScaler("cpu")  # Accelerate's fp16 needs a GPU
        return accelerator

    monkeypatch.setattr(run_module, "make_accelerator", scaled)
    train(config(VQConfig, tmp_path, resume=True))
    saved = json.loads((tmp_path / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert saved["scaler"]["scale"] == 65536.0 and saved["scaler"]["_growth_tracker"] == 4


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    """Accelerate leaves it out without a word."""
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    for dry_run in (False, True):
        with pytest.raises(ValueError, match="`report_to` 'wandb' isn't installed"):
            train(config(VQConfig, tmp_path, report_to="wandb", dry_run=dry_run))
    train(config(VQConfig, tmp_path, report_to="none", dry_run=True))


@pytest.mark.parametrize(
    ("device", "time"),
    [("cpu", "self_cpu_time_total"), *((name, "self_device_time_total") for name in ("cuda", "mps", "xpu"))],
)
def test_profiles_are_sorted_by_the_time_of_any_device(tmp_path, monkeypatch, device, time):
    sorted_by, table = [], EventList.table

    def note(events, sort_by=None, **options):
        sorted_by.append(sort_by)
        return table(events, sort_by=sort_by, **options)

    monkeypatch.setattr(EventList, "table", note)
    with profile_steps(tmp_path, torch.device(device)) as profiler:
        for _ in range(8):
            torch.ones(3).exp()
            profiler.step()
    assert sorted_by == [time] and "aten::exp" in (tmp_path / "operators.txt").read_text()


def test_profile_leaves_a_trace(tmp_path):
    train(config(VQConfig, tmp_path / "with", profile=True, max_train_steps=9))
    trace = json.loads((tmp_path / "with" / "profile" / "trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 5
    assert any("convolution" in name for name in names)
    assert "convolution" in (tmp_path / "with" / "profile" / "operators.txt").read_text()


def test_tensorboard_has_numbers_and_pictures(tmp_path):
    train(config(VQConfig, tmp_path, report_to="tensorboard", validation_split="test"))
    (folder,) = [p for p in (tmp_path / "logs" / "diffusion_bridge_vq").iterdir() if p.name.startswith("events")]
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert {"loss/reconstruction", "train/latent_rms", "train/learning_rate", "train/images_per_second"} <= set(
        tags["scalars"]
    )
    seconds = [r["train/seconds"] for r in records_of(tmp_path, "loss/")]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert {"codebook/usage", "codebook/perplexity", "validation/reconstruction"} <= set(tags["scalars"])
    assert tags["images"] == ["reconstructions"]
    last = records_of(tmp_path, "loss/")[-1]
    assert events.Scalars("loss/reconstruction")[-1].value == pytest.approx(last["loss/reconstruction"], abs=1e-5)


def test_a_disk_too_small_is_named_before_training(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r"disk: .* needed .*3 checkpoints.* 10 MiB free"):
            train(config(VQConfig, tmp_path / "run", dry_run=dry_run))
    assert not (tmp_path / "run").exists()
