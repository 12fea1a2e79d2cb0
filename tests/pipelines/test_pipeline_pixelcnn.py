"""The baseline's pipeline against its two parts called by hand, and itself after saving."""

import json

import numpy as np
import pytest
import torch
from diffusers import ImagePipelineOutput
from simulated_offload import offload
from tiny_models import make_pipeline, rng

from diffusion_bridge_vq import PixelCNNPrior, PixelCNNVQPipeline


def make_pixelcnn(classes: int | None = None, channels: int = 3) -> PixelCNNVQPipeline:
    """Images 6 x 6, 3 x 3 codes out of 32, untrained."""
    vqvae = make_pipeline(channels=channels).vqvae
    torch.manual_seed(2)
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3, num_class_embeds=classes).eval()
    with torch.no_grad():
        prior.head[-1].weight.mul_(8)
        for layer in prior.layers if classes else []:
            layer.classes.weight.normal_()
    pipe = PixelCNNVQPipeline(vqvae, prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: PixelCNNVQPipeline, seed: int = 0, **kwargs):
    return pipe(**{"batch_size": 2, "generator": rng(seed), "output_type": "pt"} | kwargs).images


@torch.no_grad()
def by_hand(pipe: PixelCNNVQPipeline, seed: int = 0, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Code vectors, and pixels in [0, 1]."""
    codes = pipe.prior.generate(2, rng(seed), **kwargs)
    z_q = pipe.vqvae.quantize.embedding.weight[codes].movedim(-1, 1).contiguous()
    return z_q, (pipe.vqvae.decoder(pipe.vqvae.post_quant_conv(z_q)) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("channels", [3, 1])
def test_output_types(channels):
    pipe = make_pixelcnn(channels=channels)
    z_q, pixels = by_hand(pipe)
    assert torch.equal(run(pipe, output_type="latent"), z_q)
    torch.testing.assert_close(run(pipe), pixels)
    np.testing.assert_allclose(run(pipe, output_type="np"), pixels.movedim(1, -1).numpy(), atol=1e-6)
    for image, expected in zip(run(pipe, output_type="pil"), pixels, strict=True):
        array = np.asarray(image).reshape(6, 6, channels)
        np.testing.assert_allclose(array, 255 * expected.movedim(0, -1).numpy(), atol=0.51)
    assert isinstance(pipe(), ImagePipelineOutput) and len(pipe(return_dict=False)[0]) == 1


def test_temperature_is_the_priors():
    pipe = make_pixelcnn()
    cold = run(pipe, temperature=0.1)
    torch.testing.assert_close(cold, by_hand(pipe, temperature=0.1)[1])
    assert not torch.equal(cold, run(pipe))


def test_classes():
    pipe = make_pixelcnn(classes=4)
    for labels, expected in (([0, 2], [0, 2]), (1, [1, 1]), (torch.tensor([2], dtype=torch.int32), [2, 2])):
        images = run(pipe, class_labels=labels)
        torch.testing.assert_close(images, by_hand(pipe, class_labels=torch.tensor(expected))[1])
    torch.testing.assert_close(run(pipe), by_hand(pipe, class_labels=torch.tensor([3, 3]))[1])  # the null class
    assert not torch.equal(run(pipe, class_labels=0), run(pipe, class_labels=1))


def test_generators_make_a_batch_equal_to_single_runs():
    pipe = make_pixelcnn()
    together = run(pipe, generator=[rng(3), rng(4)])
    single = torch.cat([run(pipe, seed, batch_size=1) for seed in (3, 4)])
    torch.testing.assert_close(together, single, atol=1e-5, rtol=0)
    assert torch.equal(run(pipe, 3), run(pipe, 3)) and not torch.equal(single[0], single[1])


def test_progress_bar(capsys):
    pipe = make_pixelcnn()
    pipe.set_progress_bar_config(disable=False)
    run(pipe)
    assert "3/3" in capsys.readouterr().err  # rows


@pytest.mark.parametrize("classes", [None, 4])
def test_round_trip(tmp_path, classes):
    pipe = make_pixelcnn(classes)
    assert set(pipe.components) == {"vqvae", "prior"} and pipe.model_cpu_offload_seq == "prior->vqvae"
    pipe.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix not in ("", ".json", ".safetensors")]
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {k: v for k, v in index.items() if not k.startswith("_")} == {
        "vqvae": ["diffusion_bridge_vq.models.autoencoder_gumbel_vq", "GumbelVQModel"],
        "prior": ["diffusion_bridge_vq.models.pixelcnn", "PixelCNNPrior"],
    }
    loaded = PixelCNNVQPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert not loaded.prior.training
    assert torch.equal(run(loaded, 11), run(pipe, 11))
    half = PixelCNNVQPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.prior.dtype == torch.bfloat16
    images = run(half, 11)
    assert images.dtype == torch.float32 and images.isfinite().all()


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_offloaded_weights_are_fetched_and_hooks_freed(monkeypatch, output_type):
    pipe = make_pixelcnn()
    images = run(pipe, output_type=output_type)
    used = offload(pipe, monkeypatch)
    assert torch.equal(run(pipe, output_type=output_type), images)
    assert used[-1] == "freed" and used.count("freed") == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"output_type": "jpg"}, "pil, np, pt or latent"),
        ({"generator": [rng()] * 3}, "3 generators for a batch of 2"),
        ({"temperature": 0}, "temperature"),
        ({"class_labels": 3}, r"0\.\.2"),
        ({"class_labels": [0, 1, 2]}, "2 integers or one"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(make_pixelcnn(classes=4), **kwargs)


def test_bad_components():
    with pytest.raises(ValueError, match="no classes"):
        run(make_pixelcnn(), class_labels=0)
    with pytest.raises(ValueError, match="num_codes=32"):
        PixelCNNVQPipeline(make_pixelcnn().vqvae, PixelCNNPrior(16, width=4, num_layers=1))
