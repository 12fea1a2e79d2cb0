"""A stock VQModel with measured statistics: normalized latents, and the codes and images of before."""

import logging

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from tiny_models import autoencoder_settings, make_images, make_unet

from diffusion_bridge_vq.models import GumbelVQModel

SETTINGS = autoencoder_settings(sample_size=16)
SPATIAL = SETTINGS | {"norm_type": "spatial", "block_out_channels": [32, 32]}
LOOKUP = SETTINGS | {"lookup_from_codebook": True}
MEAN, STD = torch.tensor([0.3, -2.0, 0.1]), 0.4


def stock(folder, settings=SETTINGS) -> VQModel:
    """Its codes lie among the latents, and its channels differ in mean and variance."""
    torch.manual_seed(0)
    model = VQModel(**settings).eval()
    with torch.no_grad():
        model.quant_conv.weight.mul_(torch.tensor([3.0, 0.5, 1.0])[:, None, None, None])
        model.quant_conv.bias.copy_(torch.tensor([1.0, -4.0, 0.0]))
        latents = model.encode(make_images(8)).latents.movedim(1, -1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:16]])
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("settings", [SETTINGS, SPATIAL, LOOKUP])
@torch.no_grad()
def test_codes_and_images_stay(tmp_path, settings):
    before, x = stock(tmp_path, settings), make_images(4)
    ours = GumbelVQModel.from_pretrained(tmp_path)
    assert not ours.has_statistics
    plain = before.encode(x).latents
    ours.use_statistics(MEAN, STD)
    assert ours.has_statistics
    latents = ours.encode(x).latents
    torch.testing.assert_close(latents, (plain - MEAN.reshape(1, 3, 1, 1)) / STD, rtol=1e-4, atol=1e-5)
    codes = ours.encode_codes(latents)
    assert torch.equal(codes.flatten(), before.quantize(plain)[2][2]) and codes.unique().numel() > 3
    torch.testing.assert_close(ours(x).sample, before(x).sample, atol=1e-5, rtol=1e-4)
    back = ours.to_vq_model()
    assert torch.equal(back.quantize(back.encode(x).latents)[2][2], codes.flatten())
    torch.testing.assert_close(back(x).sample, before(x).sample, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_can_be_repeated_and_saved(tmp_path):
    """Statistics of what is normalized already: both steps are one."""
    before, x = stock(tmp_path / "stock"), make_images(4)
    ours = GumbelVQModel.from_pretrained(tmp_path / "stock")
    ours.use_statistics(MEAN, STD)
    ours.use_statistics(torch.tensor([1.0, 0.0, -1.0]), 2.0)
    expected = (
        (before.encode(x).latents - MEAN.reshape(1, 3, 1, 1)) / STD - torch.tensor([1, 0, -1]).view(3, 1, 1)
    ) / 2
    ours.save_pretrained(tmp_path / "ours")
    loaded = GumbelVQModel.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(loaded.encode(x).latents, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded(x).sample, before(x).sample, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "mean, std, words",
    [
        (torch.full((3,), torch.nan), 1.0, "finite"),
        (MEAN, float("nan"), "finite"),
        (MEAN[:2], 1.0, "must be 3 finite numbers"),
        (MEAN, 0.0, "less than 1e-05 can't be normalized"),
        (MEAN, 1e-4, "less than 1e-05 can't be normalized"),
    ],
)
def test_statistics_that_say_nothing(mean, std, words, tmp_path):
    stock(tmp_path)
    with pytest.raises(ValueError, match=words):
        GumbelVQModel.from_pretrained(tmp_path).use_statistics(mean, std)


@pytest.mark.parametrize("factor, pixels", [(4, 64), (8, 128), (16, 256)])
def test_layouts_of_well_known_models(factor, pixels):
    """f4, f8 and f16 with three to six levels, as CompVis, Kandinsky and aMUSEd have them; without memory."""
    blocks = [128, 256, 256, 512, 768][: factor.bit_length()]
    settings = {
        "block_out_channels": blocks,
        "down_block_types": ["DownEncoderBlock2D"] * len(blocks),
        "up_block_types": ["UpDecoderBlock2D"] * len(blocks),
        "layers_per_block": 2,
        "latent_channels": 4,
        "num_vq_embeddings": 8192,
        "sample_size": pixels,
    }
    with torch.device("meta"):
        ours, theirs = GumbelVQModel(**settings), VQModel(**settings)
        assert ours.downsampling_factor == factor
        assert ours.encode(torch.zeros(1, 3, pixels, pixels)).latents.shape == (
            1,
            4,
            pixels // factor,
            pixels // factor,
        )
    assert theirs.state_dict().keys() <= ours.state_dict().keys()


def test_it_loads_without_advice_to_train_it(tmp_path, caplog, monkeypatch):
    """Its normalizer isn't in the file, which is as it should be; any other tensor that isn't there is an error."""
    stock(tmp_path)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    GumbelVQModel.from_pretrained(tmp_path)
    assert "newly initialized" not in caplog.text
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"aren't those of its configuration: missing decoder.conv_out.bias"):
        GumbelVQModel.from_pretrained(tmp_path)


def test_a_model_of_another_class_is_refused(tmp_path):
    make_unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has UNet2DModel, expected GumbelVQModel"):
        GumbelVQModel.from_pretrained(tmp_path)
