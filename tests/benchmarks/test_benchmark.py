"""benchmarks/benchmark.py runs with tiny settings, and both sides of each comparison compute the same thing."""

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from narrow_networks import narrow_presets
from tiny_models import make_pipeline
from tiny_run import config
from warm_processes import Script

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel, OUBridgeScheduler, PixelCNNPrior
from diffusion_bridge_vq.training import PriorConfig, PriorObjective

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """What the benchmark writes with tiny settings."""
    root, output = Path(__file__).parents[2], tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    arguments = ["--cpu", "--batch-size=8", "--repeats=2", "--num-inference-steps=2", f"--output={output}"]
    arguments += ["--num-workers=1", "--loading-steps=2", "--sampler-steps=2", "--batch-sizes=1", "--budget=3600"]
    arguments += ["--peak-tflops=1", "--bandwidth-gbs=10", "--quantizer-shape", "2", "8", "2", "2", "16"]
    done = Script(root / "benchmarks" / "benchmark.py", *arguments, before=narrow_presets).end()
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(output.read_text())


def test_both_sides_of_the_overhead_compute_the_same(report):
    """From the same weights and noise."""
    assert set(report["overhead"]) == {"training_step", "sample_latents", "pipeline"}
    for row in report["overhead"].values():
        assert row["difference"] < 1e-4
        assert row["package_ms"] > 0 and row["bare_ms"] > 0 and math.isfinite(row["ratio"])


def test_loading_is_compared_for_each_source(report):
    assert set(report["loading"]) == {f"digits {kind}" for kind in ("in memory", "on access", "streamed")}
    for row in report["loading"].values():
        low, high = row["speed_quartiles"]
        assert row["loaded_ms"] > 0 and row["fixed_ms"] > 0 and 0 < low <= row["speed"] <= high < math.inf


def test_memory_is_measured_for_each_quantizer(report):
    kinds = {f"{kind} {mode}" for kind in ("gumbel", "ste", "ema") for mode in ("eval", "train")}
    assert set(report["quantizer_memory"]) == (kinds if Path("/proc/self/clear_refs").exists() else set())


def test_training_is_compared_with_the_example_of_diffusers(report):
    assert [row["step"] for row in report["training"]] == ["package", "package, channels last", "diffusers' example"]
    for row in report["training"]:
        assert row["images_per_second"] > 0 and math.isfinite(row["ratio"])


def test_samplers_have_a_time_or_are_skipped(report):
    """Skipped is what isn't compiled here."""
    samplers = {row["sampler"] for row in report["samplers"]}
    assert {"bridge", "bridge, bfloat16", "bridge, linear layers int8"} <= samplers
    assert {"stock DDPMPipeline, no decoding", "PixelCNN, cached", "PixelCNN, naive"} <= samplers
    timed = {row["sampler"] for row in report["samplers"] if "skipped" not in row}
    assert timed >= {name for name in samplers if "compiled" not in name}
    assert all(row["seconds"] > 0 for row in report["samplers"] if row["sampler"] in timed)


def test_the_floor_is_arithmetic_or_memory(report):
    """Two steps of the network at 1 TFLOP/s, or its weights at 10 GB/s."""
    rows = [row for row in report["samplers"] if "floor_seconds" in row]
    assert rows
    for row in rows:
        assert row["floor_seconds"] == pytest.approx(max(row["gflops"] / 1e3, row["weights_gb"] / 10))
        assert row["times_the_floor"] == row["seconds"] / row["floor_seconds"]


def test_growth_has_five_axes(report):
    assert {row["axis"] for row in report["growth"]} == {"batch", "steps", "grid", "codes", "positions"}
    assert all(row["seconds"] > 0 for row in report["growth"])


def test_a_cpu_has_no_waits_to_count(report):
    assert report["device"].startswith("cpu") and report["waits"]["training step"] == "needs a GPU"


@pytest.fixture
def sections(scripts):
    return scripts("benchmark_sampling")


def test_all_training_steps_learn_the_same(scripts, tmp_path):
    """From the same weights, latents and draws: the losses of three steps."""
    training = scripts("benchmark_training")
    settings = config(
        PriorConfig, tmp_path, init_from=Path("none"), batch_size=50, lr_schedule="constant", lr_warmup_steps=0
    )
    accelerator = Accelerator(cpu=True)
    bridge = OUBridgeScheduler(prediction_type="sample", eta=3.0)
    ddpm = bridge.to_diffusers(DDPMScheduler)
    latents = torch.randn(50, 4, 4, 4)
    vqvae, unet = GumbelVQModel(in_channels=1, out_channels=1, **settings.vqvae), UNet2DModel(**settings.unet)
    nets = [deepcopy(unet).train() for _ in range(3)]
    steps = [
        training.package_step(PriorObjective(vqvae, nets[0], bridge, "simple"), settings, accelerator, latents),
        training.bare_step(nets[1], ddpm, settings, latents, torch.float32),
        training.stock_step(nets[2], ddpm, settings, latents, accelerator),
    ]
    losses = []
    for step in steps:
        torch.manual_seed(0)
        losses.append(torch.stack([step() for _ in range(3)]))
    assert losses[0].diff().abs().min() > 1e-4
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[2], losses[1])


def test_training_rows(scripts, tmp_path, monkeypatch):
    training = scripts("benchmark_training")
    settings = config(PriorConfig, tmp_path, init_from=Path("none"), batch_size=400)
    vqvae, unet = GumbelVQModel(in_channels=1, out_channels=1, **settings.vqvae), UNet2DModel(**settings.unet)
    seen = []
    encoded = training.Trainer.step

    def step(self, batch, number):
        seen.append((batch["latents"].shape, self.objective.unet.conv_in.weight.stride(1)))
        return encoded(self, batch, number)

    monkeypatch.setattr(training.Trainer, "step", step)
    for budget in (3600, 0):  # seconds: all, or nothing
        clock = training.Clock(budget, 2, torch.device("cpu"))
        arguments = (vqvae, unet, OUBridgeScheduler(), settings, Accelerator(cpu=True), False, clock)
        rows = list(training.compare_training(*arguments))
        assert len(rows) == 3 and all(("skipped" in row) == (budget == 0) for row in rows)
    # from the loader, each time in its layout: the stride of the input channels is 1 with the channels last
    assert {shape for shape, _ in seen} == {(400, 4, 4, 4)} and [stride for _, stride in seen] == [9] * 5 + [1] * 5


def test_formats_of_a_cpu(scripts):
    """bfloat16 and int8 give other numbers, but mostly the same codes; int8 is where it is said to be."""
    formats = scripts("benchmark_formats")
    pipe = make_pipeline()
    other = formats.in_other_formats(pipe)
    latents = torch.randn(4, 3, 3, 3)
    exact = pipe(4, 3, latents=latents, output_type="latent").images
    for each in other.values():
        each.set_progress_bar_config(disable=True)
        found = each(4, 3, latents=latents, output_type="latent").images.float()
        assert 1e-6 < (found - exact).abs().max() < 0.05 * exact.abs().max()
        assert 0.8 < formats.same_codes(pipe, each, 3) <= 1.0
    assert formats.same_codes(pipe, pipe, 3) == 1.0
    kinds = {
        type(m).__module__ for m in other["bridge, linear layers int8"].unet.modules() if hasattr(m, "in_features")
    }
    assert kinds == {"torch.ao.nn.quantized.dynamic.modules.linear"}
    assert pipe.unet.dtype == torch.float32 and other["bridge, bfloat16"].vqvae.dtype == torch.bfloat16


def test_the_naive_pixelcnn_draws_the_cached_ones_law(sections):
    """The share of every code at the last position, given all others by a sharp prior: chi-squared."""
    torch.manual_seed(0)
    prior = PixelCNNPrior(4, width=8, num_layers=2, sample_size=2).eval()
    for weights in prior.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    n = 4000
    maps = [
        codes.flatten(1) @ (4 ** torch.arange(4))
        for codes in (sections.naive_pixelcnn(prior, n, 2, 2), prior.generate(n))
    ]
    naive, cached = (torch.bincount(m, minlength=256).double() for m in maps)
    both = naive + cached
    seen = both > 10
    statistic = ((naive - cached) ** 2 / both)[seen].sum()
    assert seen.sum() > 20 and statistic < seen.sum() + 4 * (2 * seen.sum()) ** 0.5


def test_flops_of_the_floor(sections):
    """Against the count of a network that one can count by hand: convolutions and linear layers of the U-Net."""
    unet = make_pipeline().unet
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            counted += 2 * output.numel() * module.weight[0].numel()

    for module in unet.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        unet(torch.zeros(5, 3, 4, 4), 0)
    attention = (
        sum(isinstance(m, Attention) for m in unet.modules()) * 2 * 2 * 5 * 4 * 4 * 8
    )  # 2 x 2 positions, 8 wide
    row = sections.floor(unet, (5, 3, 3, 3), 7, 2.0, (1e9, 1e12))
    assert row["gflops"] == pytest.approx(7 * (counted + attention) / 1e9)
    assert row["floor_seconds"] == pytest.approx(row["gflops"]) and row["times_the_floor"] == 2 / row["floor_seconds"]


def test_what_would_go_over_the_budget_is_not_started(sections):
    clock = sections.Clock(5.0, 3, torch.device("cpu"))
    assert clock.time(lambda: None, 1)["repeats"] == 3
    assert "skipped" in clock.time(lambda: pytest.fail("started"), 1, expected=6.0)


def test_exponents(sections):
    rows = [{"axis": "batch", "value": v, "seconds": 3 * v**1.5} for v in (1, 2, 8)]
    assert sections.slopes([*rows, {"axis": "batch", "value": 9, "skipped": "why"}]) == {"batch": pytest.approx(1.5)}


def test_compiled_samplers_are_timed_last_and_only_if_they_are_compiled(sections, monkeypatch):
    pipe = make_pipeline()
    prior = PixelCNNPrior(32, width=8, num_layers=2, sample_size=3).eval()
    compiled = []
    for works in (True, False):

        def compile_(self, batch_size, works=works):
            compiled.append(self.unet is pipe.unet)
            self.unet._compiled_call_impl = self.unet._call_impl if works else None

        monkeypatch.setattr(DiffusionBridgeVQPipeline, "compile", compile_)
        rows = list(sections.compare_samplers(pipe, prior, [1], 2, sections.Clock(60, 1, pipe.device), True, None))
        names = ["bridge, compiled", "bridge, compiled, no decoding", "student, 1 step, compiled"]
        assert [row["sampler"] for row in rows[-3:]] == names
        assert all(("seconds" in row) == works for row in rows[-3:])
        skipped = {row["sampler"] for row in rows[:-3] if "skipped" in row}  # they fail on this 3 x 3 grid
        assert skipped == {"stock DDPMPipeline, no decoding", "stock DDIMPipeline, no decoding"}
    assert compiled[0] is False and pipe.unet._compiled_call_impl is None  # a copy of the network


def test_samplers_of_a_network_with_classes(sections):
    """It died inside UNet2DModel: "class_labels should be provided"."""
    pipe = make_pipeline(classes=3)
    prior = PixelCNNPrior(32, width=8, num_layers=2, sample_size=3).eval()
    clock = sections.Clock(60, 1, pipe.device)
    rows = list(sections.compare_samplers(pipe, prior, [1], 2, clock, False, (1e9, 1e12)))
    skipped = {row["sampler"]: row["skipped"] for row in rows if "skipped" in row and "compiled" not in row["sampler"]}
    stock = ("stock DDPMPipeline, no decoding", "stock DDIMPipeline, no decoding")
    assert skipped == dict.fromkeys(stock, "diffusers' pipelines take no network with classes")
    assert rows[0]["sampler"] == "bridge" and rows[0]["times_the_floor"] > 0
