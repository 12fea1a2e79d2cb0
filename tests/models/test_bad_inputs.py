"""Calls of the models with what they can't take: a ValueError or TypeError that names the argument and the remedy."""

import numpy as np
import pytest
import torch
from tiny_models import make_autoencoder, make_code_pipeline

from diffusion_bridge_vq import PixelCNNPrior
from diffusion_bridge_vq.models import EMAQuantizer, LatentNormalizer
from diffusion_bridge_vq.models.masks import expand_mask


@pytest.fixture(scope="module")
def vqvae():
    return make_autoencoder().eval()


@pytest.fixture(scope="module")
def prior():
    return PixelCNNPrior(5, width=8, num_layers=1, kernel_size=3, sample_size=2, num_class_embeds=3).eval()


@pytest.fixture(scope="module")
def code_unet():
    return make_code_pipeline().unet


def refused(call, *arguments, error=ValueError, match, **keywords) -> None:
    with pytest.raises(error, match=match):
        call(*arguments, **keywords)


IMAGES, LATENTS, CODES = (2, 3, 16, 16), (2, 3, 8, 8), (2, 8, 8)


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("encode", IMAGES),
        ("forward", IMAGES),
        ("decode", LATENTS),
        ("encode_codes", LATENTS),
        ("sample_codes", LATENTS),
        ("decode_codes", CODES),
    ],
)
def test_the_autoencoder_wants_tensors_that_are_not_empty(vqvae, method, shape):
    call, dtype = getattr(vqvae, method), np.int64 if method == "decode_codes" else np.float32
    refused(call, np.zeros(shape, dtype), error=TypeError, match="must be a torch.Tensor, got ndarray.*as_tensor")
    refused(call, np.zeros(shape, dtype).tolist(), error=TypeError, match="must be a torch.Tensor, got list")
    refused(call, torch.from_numpy(np.zeros((0, *shape[1:]), dtype)), match="is empty, its shape is")


def test_types_of_numbers_that_the_autoencoder_does_not_take(vqvae):
    refused(
        vqvae.encode, torch.zeros(IMAGES).byte(), match=r"must be floating point, got torch\.uint8; .*`\.float\(\)`"
    )
    refused(
        vqvae.encode, torch.zeros(IMAGES).double(), match=r"`x` is torch\.float64, but the model computes in torch\.fl"
    )
    refused(vqvae.decode, torch.zeros(LATENTS).double(), match=r"`h` is torch\.float64, but the model computes in")
    refused(vqvae.encode_codes, torch.zeros(LATENTS).long(), match="`z` must be floating point")
    refused(vqvae.decode_codes, torch.zeros(CODES), match=r"`codes` must be integers, got torch\.float32")


def test_what_decode_takes_as_quantized(vqvae):
    refused(vqvae.decode, torch.zeros(2, 4, 8, 8), True, match=r"z_q of shape \(B, 3, h, w\), got \(2, 4, 8, 8\)")
    refused(vqvae.decode, torch.zeros(3, 8, 8), True, match=r"z_q of shape \(B, 3, h, w\)")
    codes = torch.zeros(128, dtype=torch.long)
    refused(vqvae.decode, codes, True, match=r"`h` has 128 codes, so `shape` must be \(B, h, w, 3\)")
    refused(vqvae.decode, codes, True, shape=(2, 8, 9, 3), match="with B h w = 128")


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_temperatures_of_draws(vqvae, prior, temperature):
    refused(vqvae.quantize.sample_codes, torch.zeros(LATENTS), temperature, match="`temperature` of sample_codes")
    refused(prior.generate, temperature=temperature, match="`temperature` of generate must be a finite number, above")


def test_seeds_are_no_generators(vqvae, prior):
    refused(vqvae.sample_codes, torch.zeros(LATENTS), 5, error=TypeError, match=r"manual_seed\(seed\)")
    refused(prior.generate, 1, 5, error=TypeError, match=r"`generator` must be a torch\.Generator")


def test_an_empty_batch_does_not_reach_the_running_statistics():
    """It made the EMA codebook and the normalizer's statistics NaN."""
    quantizer, normalizer = EMAQuantizer(4, 3), LatentNormalizer(3)
    for module in (quantizer, normalizer):
        refused(module, torch.zeros(0, 3, 4, 4), match="`z` is empty")
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
    refused(quantizer.initialize_codebook, torch.full((1, 3, 8), float("nan")), match="aren't finite")
    refused(normalizer, torch.zeros(2, 4, 5), match=r"shape \(B, 3, \.\.\.\), got \(2, 4, 5\)")


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "2", None])
def test_batch_sizes_of_the_pixelcnn(prior, batch_size):
    refused(prior.generate, batch_size, match="`batch_size` of generate must be an integer of at least 1")


def test_codes_and_labels_of_the_pixelcnn(prior):
    codes = torch.zeros(2, 2, 2, dtype=torch.long)
    for call in (prior, prior.log_prob):
        refused(call, codes.numpy(), error=TypeError, match="`codes` must be a torch.Tensor, got ndarray")
        refused(call, codes, [0, 1], error=TypeError, match="`class_labels` must be a torch.Tensor, got list")
        refused(call, codes, torch.zeros(2, dtype=torch.bool), match="must be 2 integers, one per map")
    mask = torch.ones(2, 2)
    refused(prior.generate, 2, codes=codes.numpy(), mask=mask, error=TypeError, match="`codes` must be")
    refused(prior.generate, 2, codes=codes, mask=mask.numpy(), error=TypeError, match="`mask` must be")
    refused(expand_mask, mask.numpy(), codes.shape, "codes", error=TypeError, match="`mask` must be a torch.Tensor")


def test_the_code_unet(code_unet):
    t = torch.tensor(0)
    refused(code_unet, np.zeros((1, 3, 4, 4)), t, error=TypeError, match="`sample` must be a torch.Tensor")
    refused(code_unet, torch.zeros(0, 3, 4, 4), t, match="`sample` is empty")
    refused(
        code_unet, torch.zeros(1, 2, 4, 4), t, match=r"`sample` must have shape \(B, 3, h, w\), got \(1, 2, 4, 4\)"
    )


def test_the_process_of_the_code_unet(code_unet):
    codebook, log_snr = code_unet.codebook.clone(), code_unet.log_snr.clone()
    refused(
        code_unet.set_process, codebook.numpy(), log_snr, error=TypeError, match="`codebook` must be a torch.Tensor"
    )
    refused(code_unet.set_process, codebook, log_snr.long(), match="`log_snr` must be floating point")
    refused(code_unet.set_process, codebook * float("nan"), log_snr, match="one of them has NaN")
    refused(
        code_unet.set_process, codebook, log_snr, torch.zeros(2), match=r"`z_star` .* per channel, 3, got shape \(2,\)"
    )
    assert torch.equal(code_unet.codebook, codebook)
