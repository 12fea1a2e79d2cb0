"""The normalizer of the latents against torch's batch normalization."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffusion_bridge_vq.models import LatentNormalizer

TINY = 1e-12  # torch's batch normalization needs eps > 0


def test_the_first_batches_weigh_equally():
    """As torch's BatchNorm with momentum=None, until a batch's share would fall below the momentum."""
    norm, peer = LatentNormalizer(3, momentum=0.2), torch.nn.BatchNorm1d(3, momentum=None, affine=False)
    batches = [torch.randn(4, 3, 7) * (i + 1) + i for i in range(6)]
    for z in batches[:5]:
        norm(z), peer(z)
    torch.testing.assert_close(norm.running_mean, peer.running_mean)
    torch.testing.assert_close(norm.running_var * 28 / 27, peer.running_var)
    norm(batches[5])
    torch.testing.assert_close(norm.running_mean, 0.8 * peer.running_mean + 0.2 * batches[5].mean((0, 2)))


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 3, 7)])
def test_normalizer_is_batch_norm_in_training(shape):
    norm = LatentNormalizer(3, momentum=0.2)
    peer = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(3, eps=TINY, momentum=0.2, affine=False)
    weight, n = torch.randn(shape), shape[0] * math.prod(shape[2:])
    norm.num_batches_tracked.fill_(100)  # past the first batches, which weigh equally
    for _ in range(3):
        z = torch.randn(shape) * torch.tensor([0.1, 1.0, 7.0]).reshape(1, 3, *[1] * (len(shape) - 2)) + 2
        results = []
        for module in (norm, peer):
            leaf = z.clone().requires_grad_()
            out = module(leaf)
            results.append((out, *torch.autograd.grad((out * weight + out**3).sum(), leaf)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norm.running_mean, peer.running_mean)
    started = 0.8**3  # of the first variance, 1; torch's other batches are unbiased
    torch.testing.assert_close((norm.running_var - started) * n / (n - 1) + started, peer.running_var)

    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    torch.testing.assert_close(norm.eval()(z), F.batch_norm(z, mean, var, eps=TINY), atol=1e-5, rtol=1e-5)
    assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, var)


def test_frozen_normalizer_uses_and_keeps_the_running_statistics():
    norm = LatentNormalizer(2)
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    z = torch.randn(3, 2, 4, 4)
    norm.freeze()
    assert norm.training
    expected = torch.stack([(z[:, 0] - 1) / 2, (z[:, 1] + 2) / 0.5], 1)
    torch.testing.assert_close(norm(z), expected)
    assert norm.running_mean.tolist() == [1.0, -2.0] and norm.running_var.tolist() == [4.0, 0.25]
    norm.freeze(False)
    torch.testing.assert_close(norm(z), F.batch_norm(z, None, None, training=True, eps=TINY), atol=1e-5, rtol=1e-5)
    assert norm.running_mean.tolist() != [1.0, -2.0]


def test_normalizer_survives_a_constant_channel():
    z = torch.randn(3, 2, 4, 4)
    z[:, 1] = 5.0
    z.requires_grad_()
    out = LatentNormalizer(2)(z)
    out.square().sum().backward()
    assert not out[:, 1].any() and z.grad.isfinite().all()


def test_half_precision_latents_have_float32_statistics():
    z = (20 + torch.randn(4, 3, 16, 16)).bfloat16()
    norm = LatentNormalizer(3, momentum=1.0)
    out, exact = norm(z), F.batch_norm(z.double(), None, None, training=True, eps=TINY)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=2**-8)  # one rounding, at the end
    channels = z.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), channels.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm.running_var.double(), channels.var(1, correction=0), atol=1e-5, rtol=0)
