"""ONNX graphs in onnxruntime, against torch and against a reverse chain in numpy from the paper's equations."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import (
    BRIDGE,
    SKEWED,
    STEPS,
    make_code_pipeline,
    make_gray_pipeline,
    make_pipeline,
    make_words_pipeline,
    rng,
)

from diffusion_bridge_vq import OUBridgeScheduler, PixelCNNVQPipeline, onnx_export
from diffusion_bridge_vq.models import words_to_labels
from diffusion_bridge_vq.models.denoiser import call_network, denoise
from diffusion_bridge_vq.onnx_export import export_onnx
from diffusion_bridge_vq.sampling import sample_latents

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "examples" / "export_onnx.py")
CLASSES = 5
MISSING = "the extra `onnx` isn't installed"


class Exported:
    """A folder that `export_onnx` wrote, as a program without torch sees it."""

    def __init__(self, folder: Path):
        runtime = pytest.importorskip("onnxruntime", reason=MISSING)
        self.folder = folder
        self.config = json.loads((folder / "scheduler_config.json").read_text())
        self._sessions = {
            path.stem: runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in folder.glob("*.onnx")
        }
        self.latent_shape = tuple(self._sessions["denoiser"].get_inputs()[0].shape[1:])

    def input_names(self, name: str) -> list[str]:
        return [value.name for value in self._sessions[name].get_inputs()]

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        return self._sessions[name].run(None, inputs)[0]


def export(pipe, folder: Path, only: str | None = None) -> Exported:
    """`only`: one of the outputs; the other graphs are as in `graphs`, and take ten seconds."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=MISSING)
    export_one = onnx_export._export

    def skip_others(network, inputs, output, path):
        return export_one(network, inputs, output, path) if only in (None, output) else path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_export", skip_others)
        paths = export_onnx(pipe, folder)
    assert [path.name for path in paths] == ["denoiser.onnx", "quantizer.onnx", "decoder.onnx"]
    return Exported(folder)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def conditional_pipe():
    return make_pipeline(CLASSES)


@pytest.fixture(scope="module")
def by_script(pipe, tmp_path_factory) -> tuple[Exported, str]:
    """What examples/export_onnx.py wrote and printed."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=MISSING)
    folder, printed = tmp_path_factory.mktemp("onnx"), io.StringIO()
    pipe.save_pretrained(folder / "pipeline")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [SCRIPT, str(folder / "pipeline"), "--output-dir", str(folder / "onnx")])
        runpy.run_path(SCRIPT, run_name="__main__")
    return Exported(folder / "onnx"), printed.getvalue()


@pytest.fixture(scope="module")
def graphs(by_script) -> Exported:
    return by_script[0]


@pytest.fixture(scope="module")
def conditional_graphs(conditional_pipe, tmp_path_factory) -> Exported:
    unet = (
        conditional_pipe.unet.train()
    )  # as after training: the graphs are those of evaluation, and it stays as it was
    unet.mid_block.eval()
    modes = [module.training for module in unet.modules()]
    exported = export(conditional_pipe, tmp_path_factory.mktemp("onnx_classes"), only="prediction")
    assert [module.training for module in unet.modules()] == modes
    unet.eval()
    return exported


def sample_with_numpy(exported: Exported, config: dict, noise: list[np.ndarray], labels=None, scale=1.0):
    """
    z_T -> z_0 by the equations of the paper for the linear schedule with leading timesteps: standard normal `noise`
    of the start and of each step but the last.
    """
    total, steps = config["num_train_timesteps"], len(noise)
    s = config["eta"] / np.sqrt(2 * config["theta"])
    z_star = np.asarray(config["z_star"], dtype=np.float64).reshape(1, -1, 1, 1)
    betas = np.linspace(config["beta_start"], config["beta_end"], total)
    abar = {i: np.prod(1 - betas[: i + 1]) for i in range(-1, total)}  # -1 is the clean end
    assert (config["beta_schedule"], config["timestep_spacing"]) == ("linear", "leading")
    timesteps = [k * (total // steps) for k in reversed(range(steps))]

    z = z_star + s * noise[0]
    for k, t in enumerate(timesteps):
        before = timesteps[k + 1] if k + 1 < steps else -1
        m = np.sqrt(abar[t] + s**2 * (1 - abar[t]))
        inputs = {
            "sample": ((z - z_star) / m).astype(np.float32),
            "timestep": np.full(len(z), t, dtype=np.int64),
        }
        if labels is None:
            output = exported.run("denoiser", **inputs)
        else:
            null = exported.run("denoiser", **inputs, class_labels=np.full(len(z), CLASSES - 1, dtype=np.int64))
            output = null + scale * (exported.run("denoiser", **inputs, class_labels=labels) - null)
        if config["prediction_type"] == "sample":
            z_0 = output.astype(np.float64)
        elif config["prediction_type"] == "epsilon":  # z_t = z* + sqrt(abar) (z_0 - z*) + s sqrt(1 - abar) eps
            z_0 = z_star + (z - z_star - s * np.sqrt(1 - abar[t]) * output) / np.sqrt(abar[t])
        else:  # with x_t = cos x_0 + sin eps: v = cos eps - sin x_0, so x_0 = cos x_t - sin v
            cos, sin = np.sqrt(abar[t]) / m, s * np.sqrt(1 - abar[t]) / m
            z_0 = z_star + cos * (z - z_star) / m - sin * output
        a = abar[t] / abar[before]
        mean = z_star + np.sqrt(abar[before]) * (1 - a) / (1 - abar[t]) * (z_0 - z_star)
        mean = mean + np.sqrt(a) * (1 - abar[before]) / (1 - abar[t]) * (z - z_star)
        variance = s**2 * (1 - abar[before]) * (1 - a) / (1 - abar[t])
        z = mean if before == -1 else mean + np.sqrt(variance) * noise[k + 1]
    return z.astype(np.float32)


def draw_noise(shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """What `sample_latents` draws from a generator with this seed, in its order."""
    generator = rng(seed)
    return [torch.randn(shape, generator=generator).numpy().astype(np.float64) for _ in range(STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_denoiser_is_the_network_in_its_own_coordinates(graphs, pipe, batch):
    assert graphs.input_names("denoiser") == ["sample", "timestep"]
    z = torch.randn(batch, *graphs.latent_shape, generator=rng())
    timestep = torch.arange(batch) * 2 + 1  # another one for each image
    x = pipe.scheduler.scale_model_input(z, timestep)
    with torch.no_grad():
        expected = denoise(pipe.unet, pipe.scheduler, z, timestep).numpy()
    prediction = graphs.run("denoiser", sample=x.numpy(), timestep=timestep.numpy())
    np.testing.assert_allclose(prediction, expected, atol=1e-5, rtol=1e-4)
    # z itself, or another time, is another input
    for inputs in ({"sample": z, "timestep": timestep}, {"sample": x, "timestep": timestep + 5}):
        other = graphs.run("denoiser", **{name: tensor.numpy() for name, tensor in inputs.items()})
        assert np.abs(other - expected).max() > 1e-3


@pytest.mark.slow
def test_conditional_denoiser_takes_a_class_for_each_image(conditional_graphs, conditional_pipe):
    assert conditional_graphs.input_names("denoiser") == ["sample", "timestep", "class_labels"]
    z, labels, timestep = torch.randn(1, 3, 3, 3, generator=rng()).repeat(CLASSES, 1, 1, 1), torch.arange(CLASSES), 6
    x = conditional_pipe.scheduler.scale_model_input(z, timestep)
    timesteps = torch.full((CLASSES,), timestep)
    with torch.no_grad():
        expected = denoise(conditional_pipe.unet, conditional_pipe.scheduler, z, timesteps, labels).numpy()
    inputs = {"sample": x.numpy(), "timestep": timesteps.numpy(), "class_labels": labels.numpy()}
    np.testing.assert_allclose(conditional_graphs.run("denoiser", **inputs), expected, atol=1e-5, rtol=1e-4)
    assert all(np.abs(expected[0] - expected[k]).max() > 1e-3 for k in range(1, CLASSES))


@pytest.mark.slow
def test_words_are_vectors(tmp_path):
    pipe = make_words_pipeline()
    graphs = export(pipe, tmp_path, only="prediction")
    labels = words_to_labels(["red cat", "blue", ""], list(pipe.id2label.values()))  # the last is the null class
    x, timesteps = torch.randn(1, *graphs.latent_shape, generator=rng()).repeat(3, 1, 1, 1), torch.full((3,), 6)
    with torch.no_grad():
        expected = call_network(pipe.unet, x, timesteps, labels).numpy()
    inputs = {"sample": x.numpy(), "timestep": timesteps.numpy(), "class_labels": labels.numpy()}
    np.testing.assert_allclose(graphs.run("denoiser", **inputs), expected, atol=1e-5, rtol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 and np.abs(expected[1] - expected[2]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_decoder_looks_codes_up_and_quantizer_finds_them_again(graphs, pipe, batch):
    codes = torch.randint(pipe.vqvae.config.num_vq_embeddings, (batch, 3, 3), generator=rng())
    with torch.no_grad():
        expected = pipe.vqvae.decode(pipe.vqvae.decode_codes(codes), force_not_quantize=True).sample.numpy()
    np.testing.assert_allclose(graphs.run("decoder", codes=codes.numpy()), expected, atol=1e-5, rtol=1e-4)

    latents = torch.randn(batch, *graphs.latent_shape, generator=rng(1)).numpy()
    codebook = pipe.vqvae.quantize.embedding.weight.detach().numpy().astype(np.float64)
    distances = ((latents[:, None] - codebook[None, :, :, None, None]) ** 2).sum(axis=2)  # (B, K, h, w)
    found = graphs.run("quantizer", latents=latents)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, distances.argmin(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_sampling_without_torch_is_algorithm_2(graphs, pipe, prediction_type):
    scheduler = OUBridgeScheduler(**SKEWED, prediction_type=prediction_type)
    noise = draw_noise((2, *graphs.latent_shape), seed=3)
    config = {**graphs.config, "prediction_type": prediction_type}
    z_0 = sample_with_numpy(graphs, config, noise)

    expected = sample_latents(pipe.unet, scheduler, z_0.shape, STEPS, generator=rng(3), solver="ancestral")
    images = pipe.decode_latents(expected, "pt").numpy()
    np.testing.assert_allclose(z_0, expected, atol=1e-4, rtol=1e-4)
    pixels = graphs.run("decoder", codes=graphs.run("quantizer", latents=z_0))
    np.testing.assert_allclose((pixels / 2 + 0.5).clip(0, 1), images, atol=1e-4)


@pytest.mark.slow
def test_guided_sampling_without_torch_is_algorithm_2(conditional_graphs, conditional_pipe):
    labels, guidance = np.array([0, 3]), 2.5
    noise = draw_noise((2, *conditional_graphs.latent_shape), seed=4)
    z_0 = sample_with_numpy(conditional_graphs, conditional_graphs.config, noise, labels, guidance)
    expected = sample_latents(
        conditional_pipe.unet,
        conditional_pipe.scheduler,
        z_0.shape,
        STEPS,
        generator=rng(4),
        solver="ancestral",
        class_labels=torch.tensor(labels),
        guidance_scale=guidance,
    )
    np.testing.assert_allclose(z_0, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_files_are_whole_and_say_nothing_about_the_machine(graphs, pipe):
    onnx = pytest.importorskip("onnx", reason=MISSING)
    names = ["decoder.onnx", "denoiser.onnx", "quantizer.onnx", "scheduler_config.json"]
    assert sorted(path.name for path in graphs.folder.iterdir()) == names  # the weights are inside
    for name in names[:3]:
        onnx.checker.check_model(graphs.folder / name, full_check=True)
        content = (graphs.folder / name).read_bytes()
        assert all(str(place).encode() not in content for place in (ROOT, Path(torch.__file__).parent, sys.prefix))
    again = OUBridgeScheduler.from_config(graphs.config)
    torch.testing.assert_close(again.betas, pipe.scheduler.betas)
    assert again.config.z_star == SKEWED["z_star"]


@pytest.mark.slow
def test_example(by_script, tmp_path, monkeypatch, capsys):
    exported, printed = by_script
    assert str(exported.folder / "decoder.onnx") in printed and exported.latent_shape == (3, 3, 3)
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(tmp_path), "--output-dir", str(tmp_path / "onnx")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert stopped.value.code == 2 and "model_index.json" in capsys.readouterr().err.splitlines()[-1]


def test_a_stock_scheduler_stays_one(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=MISSING)
    pipe = make_gray_pipeline()
    pipe.scheduler = OUBridgeScheduler(**BRIDGE, eta=2.0).to_diffusers(DDIMScheduler)
    monkeypatch.setattr(onnx_export, "_export", lambda network, inputs, output, path: path)
    export_onnx(pipe, tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "DDIMScheduler"


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_extra_the_error_names_it(pipe, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"the extra `onnx` .*\.\[onnx\]"):
        export_onnx(pipe, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"`unet` is in torch.float16.*pipe.to\(torch.float32\)"):
        export_onnx(make_pipeline().to(torch.float16), tmp_path / "onnx")
    pixelcnn = PixelCNNVQPipeline.__new__(PixelCNNVQPipeline)
    with pytest.raises(ValueError, match=r"with a U-Net.*got PixelCNNVQPipeline"):
        export_onnx(pixelcnn, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_a_network_of_codes(tmp_path):
    """Its posterior is part of the graph: numpy needs neither codebook nor noise levels."""
    pipe = make_code_pipeline()
    exported = export(pipe, tmp_path, only="prediction")
    found = sample_with_numpy(exported, exported.config, draw_noise((2, 3, 3, 3), seed=0))
    wanted = sample_latents(pipe.unet, pipe.scheduler, (2, 3, 3, 3), STEPS, generator=rng(), solver="ancestral")
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-4)
