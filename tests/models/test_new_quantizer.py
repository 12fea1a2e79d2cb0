"""A new quantizer is one subclass and one line in the registry: here one that returns a soft mean of the codes."""

import pytest
import torch

from diffusion_bridge_vq import GumbelVQModel
from diffusion_bridge_vq.models.blockwise import negative_squared_distances
from diffusion_bridge_vq.models.quantizer import VectorQuantizer
from diffusion_bridge_vq.models.quantizers_trained import QUANTIZERS

ARGUMENTS = {
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "latent_channels": 3,
    "num_vq_embeddings": 5,
    "mid_block_add_attention": False,
    "temperature": 0.5,
}


class SoftQuantizer(VectorQuantizer):
    def assign(self, rows):
        logits = negative_squared_distances(rows, self.float_codebook())
        z_q = (logits / self.temperature).softmax(dim=1) @ self.float_codebook()
        return z_q, (rows - z_q).square().mean(), logits.argmax(dim=1)


@pytest.fixture
def soft(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "soft", SoftQuantizer)


def test_the_autoencoder_uses_it(soft):
    torch.manual_seed(0)
    vqvae = GumbelVQModel(quantizer_type="soft", **ARGUMENTS)
    z = torch.randn(2, 3, 4, 4)
    z_q, loss, (_, _, codes) = vqvae.quantize(z)
    e = vqvae.quantize.embedding.weight
    distances = (z.movedim(1, -1)[..., None, :] - e).square().sum(-1)  # (2, 4, 4, 5)
    expected = ((-distances / 0.5).softmax(-1) @ e).movedim(-1, 1)
    assert torch.allclose(z_q, expected, atol=1e-5)
    assert torch.allclose(loss, (z - expected).square().mean(), atol=1e-5)
    assert torch.equal(codes, distances.argmin(-1)) and torch.equal(vqvae.encode_codes(z), codes)
    vqvae(torch.randn(2, 3, 8, 8)).sample.sum().backward()
    assert e.grad is not None and e.grad.abs().sum() > 0


def test_it_is_saved_and_loaded_by_name(soft, tmp_path):
    GumbelVQModel(quantizer_type="soft", **ARGUMENTS).save_pretrained(tmp_path)
    assert isinstance(GumbelVQModel.from_pretrained(tmp_path).quantize, SoftQuantizer)
