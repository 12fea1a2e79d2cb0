"""The collector: what it feeds to the metrics (which have their own tests), and what it writes down."""

import io
import json
import math
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from diffusers import UNet2DModel
from PIL import Image
from tiny_models import make_gray_pipeline, make_pipeline

from diffusion_bridge_vq import GumbelVQModel, PixelCNNVQPipeline
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    EvaluationConfig,
    ModelOutputs,
    RealImages,
    SampleStore,
    append_result,
    code_metrics,
    evaluate_pipelines,
    pixelcnn_nll,
    read_results,
    real_images,
    run_metrics,
    write_report,
)
from diffusion_bridge_vq.models import PixelCNNPrior
from diffusion_bridge_vq.sampling import generators_for

N = 40


def make_pixelcnn() -> PixelCNNVQPipeline:
    prior = PixelCNNPrior(num_codes=16, width=8, num_layers=2, kernel_size=3, sample_size=4).eval()
    return PixelCNNVQPipeline(make_gray_pipeline().vqvae, prior)


@pytest.fixture
def real(monkeypatch) -> RealImages:
    """Digits, with four features that need no network."""

    def features(images: torch.Tensor) -> torch.Tensor:
        halves = images.float().mean(dim=1).unflatten(1, (2, 8)).unflatten(3, (2, 8))
        return halves.mean(dim=(2, 4)).flatten(1)

    monkeypatch.setattr(real_images, "load_extractor", lambda name, device: features)
    splits = (load_images("digits", resolution=16, channels=1, split=split) for split in ("train", "test"))
    return RealImages("digits", *splits, N, "halves", "cpu")


def outputs_of(model, pipe, real, folder, config, batch_size=16) -> ModelOutputs:
    folder.mkdir(exist_ok=True)
    return ModelOutputs(model, pipe, real, SampleStore(folder / "figures.safetensors"), config, batch_size)


def results(folder) -> dict:
    return {r["name"]: r for r in read_results(folder / "results.json")}


def test_classes_are_left_to_the_null_class(real, tmp_path, monkeypatch):
    """Of a U-Net whose null class is embedded as 0, and the others far from it."""
    monkeypatch.setattr(code_metrics, "ELBO_TIMESTEPS", 2)
    pipe, conditional = make_gray_pipeline(), make_gray_pipeline()
    unet = UNet2DModel.from_config(pipe.unet.config, num_class_embeds=4).eval()
    missing = unet.load_state_dict(pipe.unet.state_dict(), strict=False).missing_keys
    assert missing == ["class_embedding.weight"]
    torch.nn.init.normal_(unet.class_embedding.weight, std=10)
    torch.nn.init.zeros_(unet.class_embedding.weight[-1])
    conditional.register_modules(unet=unet)
    settings = EvaluationConfig(num_inference_steps=3, num_nll_images=8, num_nll_samples=1)
    for name, each in (("without", pipe), ("with", conditional)):
        run_metrics(("nll", "bits", "elbo"), outputs_of(name, each, real, tmp_path / name, settings), tmp_path / name)
    without, with_classes = results(tmp_path / "without"), results(tmp_path / "with")
    assert {"nll", "nll_top_left", "code_bits", "elbo_prior"} <= without.keys() == with_classes.keys()
    for name in without:
        assert with_classes[name]["value"] == pytest.approx(without[name]["value"], rel=1e-4)


@pytest.mark.parametrize(("model", "guidance"), [("bridge", 1.0), ("bridge", 2.5), ("pixelcnn", 1.0)])
def test_with_guidance_samples_have_every_class_in_turn(model, guidance, real, tmp_path):
    """Codes of a labeled sheet, drawn by hand with the pipeline; a batch isn't a multiple of the classes."""
    torch.manual_seed(0)
    if model == "bridge":
        pipe = make_gray_pipeline()
        pipe.register_modules(unet=UNet2DModel.from_config(pipe.unet.config, num_class_embeds=4).eval())
        torch.nn.init.normal_(pipe.unet.class_embedding.weight, std=10)
        call = {"num_inference_steps": 3, "solver": "dpmsolver++", "guidance_scale": guidance}
    else:
        prior = PixelCNNPrior(num_codes=16, width=8, num_layers=2, kernel_size=3, sample_size=4, num_class_embeds=4)
        for layer in prior.layers:
            torch.nn.init.normal_(layer.classes.weight, std=10)
        pipe, call = PixelCNNVQPipeline(make_gray_pipeline().vqvae, prior.eval()), {}
    settings = EvaluationConfig(num_inference_steps=3, solver="dpmsolver++", guidance_scale=guidance, seed=3)
    outputs = outputs_of(model, pipe, real, tmp_path, settings, batch_size=4)
    expected = []
    for first, labels in ((0, [0, 1, 2, 0]), (4, [1, 2, 0, 1])):
        call |= {"generator": generators_for(3, range(first, first + 4)), "output_type": "latent"}
        expected.append(pipe.vqvae.encode_codes(pipe(4, class_labels=labels, **call).images))
    assert torch.equal(outputs.sampled_codes(8), torch.cat(expected))
    run_metrics(("kl",), outputs, tmp_path)
    assert results(tmp_path)["kl"]["guidance_scale"] == guidance
    # drawn without classes they are others, and are measured by themselves
    plain = EvaluationConfig(num_inference_steps=3, seed=3)
    without = outputs_of(model, pipe, real, tmp_path, plain, batch_size=4)
    assert not torch.equal(without.sampled_codes(8), torch.cat(expected))
    run_metrics(("kl",), without, tmp_path)
    assert [r["guidance_scale"] for r in read_results(tmp_path / "results.json") if r["name"] == "kl"] == [guidance, 0]


def test_guidance_needs_classes(real, tmp_path):
    for pipe in (make_gray_pipeline(), make_pixelcnn()):
        with pytest.raises(ValueError, match="has no classes: leave out `guidance_scale`"):
            outputs_of("model", pipe, real, tmp_path, EvaluationConfig(guidance_scale=1.5))
    prior = PixelCNNPrior(num_codes=16, width=8, num_layers=2, kernel_size=3, sample_size=4, num_class_embeds=4)
    with pytest.raises(ValueError, match=r"no guidance: `guidance_scale` is 0 or 1, not 1\.5"):
        pipe = PixelCNNVQPipeline(make_gray_pipeline().vqvae, prior)
        outputs_of("pixelcnn", pipe, real, tmp_path, EvaluationConfig(guidance_scale=1.5))
    with pytest.raises(ValueError, match="`guidance_scale` must be finite and at least 0, got -1"):
        EvaluationConfig(guidance_scale=-1)


def test_pixelcnn(real, tmp_path):
    pipe = make_pixelcnn()
    outputs = outputs_of("pixelcnn", pipe, real, tmp_path, EvaluationConfig(num_nll_images=20))
    run_metrics(("nll", "bits", "elbo"), outputs, tmp_path)
    found = results(tmp_path)
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[1:3, 1:3] = True
    some = [i * (N - 1) // 19 for i in range(20)]  # from the whole set: it may be in the order of its classes
    bits = pixelcnn_nll(pipe.prior, outputs.test_codes[some], hidden)
    assert found["nll"]["value"] == pytest.approx(bits.mean().item())
    assert found["nll"]["std"] == pytest.approx(bits.std().item())
    with torch.no_grad():
        log_p = pipe.prior(outputs.test_codes[some], return_dict=False)[0].log_softmax(dim=1)
    truth = log_p.gather(1, outputs.test_codes[some][:, None]).mean().item()
    assert found["code_bits"]["value"] == pytest.approx(-truth / math.log(2), rel=1e-5)
    assert "steps" not in found["nll"] and not any(name.startswith(("elbo", "nll_joint")) for name in found)
    few, all_of_them = outputs.sampled_codes(9), outputs.sampled_codes(N)
    assert all_of_them.shape == (N, 4, 4) and torch.equal(all_of_them[:9], few)


def test_saved_pipelines_to_tables_and_figures(tmp_path):
    pytest.importorskip("matplotlib")
    for name, pipe in (("bridge", make_gray_pipeline()), ("pixelcnn", make_pixelcnn())):
        pipe.save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in ("bridge", "pixelcnn")}
    settings = EvaluationConfig(num_images=30, num_inference_steps=2)
    evaluate_pipelines(folders, "digits", tmp_path / "out", settings, ("kl",), dataset_name="cifar10")
    found = read_results(tmp_path / "out" / "results.json")
    assert {(r["model"], r["n"]) for r in found} == {("bridge", 30), ("pixelcnn", 30)}
    names = [path.name for path in write_report(tmp_path / "out")]
    assert names == ["tables.md", "kl_maps.png"]
    value = next(r["value"] for r in found if r["name"] == "kl" and r["model"] == "bridge")
    assert f"{value:.3g}" in (tmp_path / "out" / "tables.md").read_text()


def test_an_autoencoder_alone_is_measured_as_that_of_its_pipeline(tmp_path):
    """Also where the folder of the run is given, which has a config.json of its own."""
    pipe = make_gray_pipeline()
    pipe.save_pretrained(tmp_path / "bridge" / "pipeline")
    pipe.vqvae.save_pretrained(tmp_path / "vq" / "vqvae")
    for run in ("bridge", "vq"):
        (tmp_path / run / "config.json").write_text("{}")
    folders = {"whole": tmp_path / "bridge", "alone": tmp_path / "vq" / "vqvae", "run": tmp_path / "vq"}
    settings = EvaluationConfig(num_images=30, num_inference_steps=2)
    evaluate_pipelines(folders, "digits", tmp_path, settings, ("reconstruction", "kl"))
    found = {(r["model"], r["name"]): r["value"] for r in read_results(tmp_path / "results.json")}
    assert {name for model, name in found if model == "alone"} == {"psnr", "ssim", "usage", "perplexity"}
    for name in ("psnr", "ssim", "usage", "perplexity"):
        assert found["alone", name] == found["run", name] == found["whole", name]
    with pytest.raises(ValueError, match="is an autoencoder: its metrics are rfid, reconstruction"):
        evaluate_pipelines({"alone": folders["alone"]}, "digits", tmp_path, metrics=("nll",))


def test_images_smaller_than_ssims_window_have_none(tmp_path):
    make_pipeline(channels=1).save_pretrained(tmp_path / "pipeline")
    settings = EvaluationConfig(num_images=5)
    evaluate_pipelines({"small": tmp_path / "pipeline"}, "digits", tmp_path, settings, ("reconstruction",))
    assert results(tmp_path).keys() == {"psnr", "usage", "perplexity"}


def test_the_column_of_images_is_chosen(tmp_path):
    make_pipeline(channels=1).save_pretrained(tmp_path / "pipeline")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 6), dtype=np.uint8)  # two columns of six images
    left, right = ([Image.fromarray(x) for x in column] for column in pixels)
    columns = {"both": {"left": left, "right": right}, "right": {"right": right}}
    for name, images in columns.items():
        features = Features(dict.fromkeys(images, datasets.Image()))
        for split in ("train", "test"):
            (tmp_path / name).mkdir(exist_ok=True)
            Dataset.from_dict(images, features=features).to_parquet(
                tmp_path / name / f"{split}-00000-of-00001.parquet"
            )
    found = []
    for name, column in (("both", "right"), ("right", None), ("both", "left")):
        (tmp_path / f"{name}-{column}").mkdir()
        evaluate_pipelines(
            {"bridge": tmp_path / "pipeline"},
            str(tmp_path / name),
            tmp_path / f"{name}-{column}",
            EvaluationConfig(num_images=6),
            ("reconstruction",),
            image_column=column,
        )
        found.append(results(tmp_path / f"{name}-{column}")["psnr"]["value"])
    assert found[0] == found[1] != found[2]


def test_one_image_has_no_standard_deviation(real, tmp_path):
    settings = EvaluationConfig(num_inference_steps=2, num_nll_images=1, num_nll_samples=1)
    run_metrics(("nll",), outputs_of("bridge", make_gray_pipeline(), real, tmp_path, settings), tmp_path)
    found = results(tmp_path)["nll"]
    assert found["n"] == 1 and found["value"] > 0 and "std" not in found


def test_a_blank_image_that_comes_back_exactly(tmp_path):
    pipe = make_gray_pipeline()
    torch.nn.init.constant_(pipe.vqvae.decoder.conv_out.bias, 9.0)  # all is white
    pipe.save_pretrained(tmp_path / "pipeline")
    for number, shade in enumerate((255, 230)):
        for split in ("train", "test"):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            pixels = np.full((16, 16), shade, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{number}.png")
    settings = EvaluationConfig(num_images=2)
    folders = {"bridge": tmp_path / "pipeline"}
    evaluate_pipelines(folders, str(tmp_path / "images"), tmp_path / "out", settings, ("reconstruction",))
    # errors in a rounded value are spread evenly over a step of 1: variance 1/12
    expected = (-10 * math.log10(1 / 12 / 255**2) + 20 * math.log10(255 / 25)) / 2
    assert results(tmp_path / "out")["psnr"]["value"] == pytest.approx(expected)


def test_an_extractor_that_wont_do_costs_no_draws(real, tmp_path, monkeypatch):
    def drawn(self, count):
        raise AssertionError("drawn")

    monkeypatch.setattr(ModelOutputs, "sampled_codes", drawn)
    monkeypatch.setattr(real, "extractor", lambda images: images.float().flatten(1))  # 256 features, 40 images
    with pytest.raises(ValueError, match="at least 257 images"):
        settings = EvaluationConfig(num_inference_steps=2)
        run_metrics(("fid",), outputs_of("bridge", make_gray_pipeline(), real, tmp_path, settings), tmp_path)


def test_models_of_other_sizes_and_names_that_are_no_files(tmp_path):
    pipe = make_gray_pipeline()
    pipe.save_pretrained(tmp_path / "small")
    shutil.copytree(tmp_path / "small" / "vqvae", tmp_path / "large")
    GumbelVQModel.from_config(pipe.vqvae.config, sample_size=32).save_config(tmp_path / "large")
    folders = {"small": tmp_path / "small", "large": tmp_path / "large"}
    with pytest.raises(ValueError, match=r"large has images of .*32.*, those before it of .*16"):
        evaluate_pipelines(folders, "digits", tmp_path, EvaluationConfig(num_images=20), ("reconstruction",))
    assert {r["model"] for r in read_results(tmp_path / "results.json")} == {"small"}
    for name in ("", "seed/0", "seed\\0", "a:b"):
        with pytest.raises(ValueError, match="can't be a model's name"):
            evaluate_pipelines({name: tmp_path / "small"}, "digits", tmp_path)


def test_tables_are_utf8_wherever_they_are_written(tmp_path, monkeypatch):
    append_result(tmp_path / "results.json", "kl", 0.5, n=9, seed=0, dataset="фото", model="bridge")
    with monkeypatch.context() as patch:
        patch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")  # a locale's
        write_report(tmp_path)
    assert "All results on фото" in (tmp_path / "tables.md").read_text(encoding="utf-8")


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="No pipeline"):
        evaluate_pipelines({}, "digits", tmp_path)
    with pytest.raises(ValueError, match="got speed"):
        evaluate_pipelines({"bridge": tmp_path}, "digits", tmp_path, metrics=("speed",))
    with pytest.raises(ValueError, match="measure something first"):
        write_report(tmp_path)
    splits = [load_images("digits", resolution=16, channels=1, split=split) for split in ("train", "test")]
    with pytest.raises(ValueError, match="297 images, fewer than 298"):
        RealImages("digits", *splits, 298, "inception", "cpu")
    for option, value in {"num_images": 0, "num_inference_steps": 0, "solver": "euler", "extractor": "vgg"}.items():
        with pytest.raises(ValueError, match=f"`{option}` must be .*, got .?{value}"):
            EvaluationConfig(**{option: value})
    (tmp_path / "results.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="no file of results"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": -1}, "`batch_size` must be at least 1"),
        ({"batch_size": 2.5}, "`batch_size` must be a whole number"),
        ({"device": "toaster"}, "`device` must be a device"),
        ({"metrics": "kl"}, "`metrics` must be a list of names, got 'kl'"),
        ({"metrics": ("kl", None)}, "got None"),
        ({"folders": ["pipeline"]}, "`folders` must be {model: folder}, got list"),
    ],
)
def test_arguments_are_checked_before_work(tmp_path, arguments, message):
    good = {"folders": {"bridge": tmp_path / "none"}, "dataset": "nothing", "output_dir": tmp_path / "out"}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        evaluate_pipelines(**good | arguments)
    assert not (tmp_path / "out").exists()


def test_the_output_is_checked_before_work(tmp_path, monkeypatch):
    """An output that is a file, can't be written to, or has damaged results costs no loading of models and images."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't be written to .*file \(File exists\): give another folder"):
        evaluate_pipelines({"bridge": tmp_path / "none"}, "nothing", tmp_path / "file")
    with pytest.raises(ValueError, match=r"can't be written to .* \(Not a directory\)"):
        evaluate_pipelines({"bridge": tmp_path / "none"}, "nothing", tmp_path / "file" / "below")
    for name in ("results.json", "figures.safetensors"):
        (tmp_path / name).write_text("not this")
        with pytest.raises(ValueError, match=re.escape(name)):
            evaluate_pipelines({"bridge": tmp_path / "none"}, "nothing", tmp_path)
        (tmp_path / name).unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ValueError, match="No space left on device"):
        evaluate_pipelines({"bridge": tmp_path / "none"}, "nothing", tmp_path)


def test_more_steps_than_noise_levels(real, tmp_path):
    """Refused before the features of real images are computed; what needs no draws is measured all the same."""
    outputs = outputs_of("bridge", make_gray_pipeline(), real, tmp_path, EvaluationConfig(num_inference_steps=21))
    run_metrics(("reconstruction",), outputs, tmp_path)
    for metric in ("fid", "kl", "nll", "timing"):
        with pytest.raises(ValueError, match="`num_inference_steps` is 21, but bridge has 20 noise levels"):
            run_metrics((metric,), outputs, tmp_path)
