"""benchmarks/study_steps.py: what it measures on sets that it must find perfect, what it skips, and its table."""

import sys

import pytest
import torch
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.evaluation import frechet_distance, read_results


@pytest.fixture
def script(scripts):
    return scripts("study_steps")


@pytest.fixture
def command(tmp_path, monkeypatch):
    pipeline, output = tmp_path / "pipeline", tmp_path / "steps"
    make_gray_pipeline().save_pretrained(pipeline)  # 20 levels, 4 x 4 latents of 2 channels
    return ["study_steps.py", str(pipeline), "--num-images=40", "--batch-size=30", f"--output-dir={output}"]


def test_a_study_goes_on_where_it_was_cut_off(script, command, tmp_path, monkeypatch):
    drawn, draw = [], script.draw_codes

    def counted(pipe, n, batch_size, seed, **call):
        drawn.append((call["solver"], call.get("timestep_spacing"), call["num_inference_steps"], seed))
        return draw(pipe, n, batch_size, seed, **call)

    monkeypatch.setattr(script, "draw_codes", counted)
    narrow = [*command, "--solvers", "dpmsolver++", "ddim", "--spacings", "logsnr", "trailing", "--steps"]
    monkeypatch.setattr(sys, "argv", [*narrow, "3"])
    script.main()
    assert len(drawn) == 4
    monkeypatch.setattr(sys, "argv", [*narrow, "20", "3", "--seeds", "0", "1"])
    script.main()
    # seed 1 of the four, and all 20 levels once for each solver and seed
    assert sorted(drawn[4:], key=str) == sorted(
        [(s, p, 3, 1) for s in ("dpmsolver++", "ddim") for p in ("logsnr", "trailing")]
        + [(s, None, 20, seed) for s in ("dpmsolver++", "ddim") for seed in (0, 1)],
        key=str,
    )
    script.main()
    assert len(drawn) == 12
    results = read_results(tmp_path / "steps" / "results.json")
    assert len(results) == 2 * (12 + 1) and all(r["n"] == 40 for r in results)
    lines = (tmp_path / "steps" / "steps.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert rows[0] == ["steps", "dpmsolver++, logsnr", "dpmsolver++, trailing", "ddim, logsnr", "ddim, trailing"]
    values = [
        r["value"] for r in results if (r["name"], r["solver"], r["steps"], r["spacing"]) == ("kl", "ddim", 20, "all")
    ]
    last = rows[-1]
    mean = f"{sum(values) / 2:.3g} ({min(values):.3g}-{max(values):.3g})"
    assert last[0] == "20" and last[3] == last[4] == mean


def test_a_retrained_model_is_another(script, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "2", "--solvers", "ddim", "--spacings", "trailing"])
    script.main()
    pipe = DiffusionBridgeVQPipeline.from_pretrained(command[1])
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(0.5)
    pipe.save_pretrained(command[1])
    script.main()
    found = [r for r in read_results(tmp_path / "steps" / "results.json") if r["name"] == "frechet"]
    first, second = (r["value"] for r in found if r["solver"] == "ddim")
    assert first != second and f"| {second:.3g} |" in (tmp_path / "steps" / "steps.md").read_text()


def test_other_images_are_another_study(script, command, tmp_path, monkeypatch):
    command += ["--steps", "2", "--solvers", "ddim", "--spacings", "trailing"]
    tables = []
    for split in ("train", "test", "train"):
        monkeypatch.setattr(sys, "argv", [*command, "--split", split])
        script.main()
        tables.append((tmp_path / "steps" / "steps.md").read_text())
    assert tables[0] == tables[2] != tables[1]
    assert len(read_results(tmp_path / "steps" / "results.json")) == 2 * 2 * 2  # measures, real and drawn, splits


def test_images_that_are_the_training_images(script, command, tmp_path, monkeypatch):
    """The measure finds no distance between a set and itself, and more between sets of which one has fewer codes."""
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "2", "--solvers", "ddim", "--spacings", "trailing"])
    measures, init = [], script.SampleMeasure.__init__

    def kept(self, *args):
        init(self, *args)
        measures.append(self)

    monkeypatch.setattr(script.SampleMeasure, "__init__", kept)
    script.main()
    (measure,) = measures
    assert measure.codes.shape == (1500, 4, 4)
    same = measure(measure.codes)
    assert abs(same["frechet"]) < 1e-4 * measure.reference.var() and same["kl"] == pytest.approx(0, abs=1e-12)
    apart = measure(torch.where(torch.rand(1500, 4, 4) < 0.5, measure.codes[0, 0, 0], measure.codes))
    floor = measure.floor(1500)
    halves = measure.codes[::2], measure.codes[1::2]
    between = frechet_distance(*(measure.pipe.vqvae.decode_codes(half).flatten(1) for half in halves))
    assert floor["frechet"] == pytest.approx(between / 2)  # sets of twice the size
    assert apart["frechet"] > 2 * floor["frechet"] > 0 and apart["kl"] > 2 * floor["kl"] > 0


def test_too_few_samples_are_refused_before_any_is_drawn(script, command, monkeypatch, capsys):
    """32 samples in 32 dimensions have a singular covariance, which was found after the first were drawn."""
    drawn = []
    monkeypatch.setattr(script, "draw_codes", lambda *args, **kwargs: drawn.append(args))
    monkeypatch.setattr(sys, "argv", [*command, "--num-images=32", "--steps", "2"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--num-images and the data must have at least 33" in capsys.readouterr().err and not drawn
