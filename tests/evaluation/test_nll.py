"""Likelihoods against enumerated laws of a small chain."""

import math

import numpy as np
import pytest
import torch

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.evaluation import bridge_nll, pixelcnn_nll
from diffusion_bridge_vq.models import GumbelSoftmaxQuantizer
from diffusion_bridge_vq.toy.networks import MixtureDenoiser
from diffusion_bridge_vq.toy.walks import NOISE_STD, all_toy_sequences, toy_codebook

# of calls that fail, or draw nothing
NETWORK, SCHEDULER = torch.nn.Identity(), OUBridgeScheduler()


@pytest.fixture
def quantizer():
    quantizer = GumbelSoftmaxQuantizer(8, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(toy_codebook())
    return quantizer


def exact_nll(codes: torch.Tensor, fixed: list[int]) -> tuple[float, float]:
    """
    Bits per hidden code of a walk, its codes at `fixed` being known: the expectation of the one-sample value, and
    -log2 p(k) / n. Over the walks that agree with what is fixed, and by quadrature over the Gaussian noise of each
    point: p(k | walk) = E softmax_k(-||e + 0.05 eps - e_k||^2).
    """
    codebook = toy_codebook().double().numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    points = NOISE_STD * np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / (2 * math.pi)
    logits = -((codebook[:, None, None] + points[None, :, None] - codebook) ** 2).sum(-1)  # (8 true, points, K)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p, mean_log_p = np.einsum("tpk,p->tk", np.exp(log_p), weights), np.einsum("tpk,p->tk", log_p, weights)
    walks = all_toy_sequences()
    walks = walks[(walks[:, fixed] == codes[fixed]).all(dim=1)]
    hidden = [i for i in range(5) if i not in fixed]
    one_sample = np.mean([[mean_log_p[walk[i], codes[i]] for i in hidden] for walk in walks.tolist()])
    joint = np.mean([np.prod([p[walk[i], codes[i]] for i in hidden]) for walk in walks.tolist()])
    return -one_sample / math.log(2), -math.log2(joint) / len(hidden)


@pytest.mark.parametrize(
    ("fixed", "num_samples", "batch", "options"),
    [
        ([], 40, 200, {}),  # exact without resampling: nothing is known
        ([0, 4], 4, 1000, {"jump_n_sample": 10, "jump_length": 10}),
    ],
)
def test_bridge_nll_is_the_enumerated_one(quantizer, fixed, num_samples, batch, options):
    """
    8,000 and 4,000 draws from the exact denoiser: standard errors of about 0.02. Without resampling the second case
    is 0.17 and 0.19 off.
    """
    scheduler = OUBridgeScheduler(50, trained_betas=[0.1] * 50, eta=0.5, prediction_type="sample")
    network = MixtureDenoiser(toy_codebook()[all_toy_sequences()].transpose(1, 2), NOISE_STD, scheduler)
    codes = torch.tensor([0, 1, 2, 3, 4])
    mask = torch.ones(5, dtype=torch.bool)
    mask[fixed] = False
    nll = bridge_nll(
        network,
        scheduler,
        quantizer,
        toy_codebook()[codes].T.expand(batch, -1, -1),
        codes.expand(batch, -1),
        mask,
        num_samples,
        50,
        torch.Generator().manual_seed(0),
        **options,
    )
    one_sample, joint = exact_nll(codes, fixed)
    assert one_sample > joint + 0.1  # they differ
    assert nll.one_sample.shape == nll.joint.shape == (batch,)
    assert nll.one_sample.mean().item() == pytest.approx(one_sample, abs=0.06)
    # the mean over images of the M-sample probability has no bias, that of its logarithm has
    hidden = 5 - len(fixed)
    unbiased = -nll.joint.mul(-hidden).exp2().mean().log2().item() / hidden
    assert unbiased == pytest.approx(joint, abs=0.06)
    assert joint < nll.joint.mean().item() < one_sample


def test_bridge_nll_of_given_draws(monkeypatch, quantizer):
    """Both values from three draws, by numpy, on a map with another mask in each image."""
    draws = [torch.randn(2, 2, 3, 4) for _ in range(3)]
    codes = torch.randint(8, (2, 3, 4))
    mask = torch.zeros(2, 3, 4)
    mask[0, 1, 1:3] = mask[1, 2] = mask[1, 0, 0] = 1
    known, seen = torch.randn(2, 2, 3, 4), []

    def inpaint(unet, scheduler, known_latents, mask, num_inference_steps, generator, **rest):
        assert list(rest) == ["jump_length", "jump_n_sample", "class_labels"]
        seen.append((known_latents, mask, num_inference_steps, generator, *rest.values()))
        return draws[len(seen) - 1]

    monkeypatch.setattr("diffusion_bridge_vq.evaluation.nll.inpaint_latents", inpaint)
    generator = torch.Generator()
    labels = torch.tensor([3, 0])
    settings = {"jump_length": 2, "jump_n_sample": 5, "class_labels": labels}
    nll = bridge_nll(NETWORK, SCHEDULER, quantizer, known, codes, mask, 3, 7, generator, **settings)
    for arguments in seen:
        assert torch.equal(arguments[0], known) and torch.equal(arguments[1], mask[:, None].bool())
        assert arguments[2:-1] == (7, generator, 2, 5) and arguments[-1] is labels
    codebook = toy_codebook().double().numpy()
    for b in range(2):
        hidden = np.argwhere(mask[b].numpy())
        log2_p = []
        for z in draws:
            values = []
            for i, j in hidden:
                distances = ((z[b, :, i, j].double().numpy() - codebook) ** 2).sum(-1)
                values.append(np.log2(np.exp(-distances[codes[b, i, j]]) / np.exp(-distances).sum()))
            log2_p.append(values)
        assert nll.one_sample[b].item() == pytest.approx(-np.mean(log2_p), rel=1e-5)
        joint = -np.log2(np.mean(np.exp2(np.sum(log2_p, axis=1)))) / len(hidden)
        assert nll.joint[b].item() == pytest.approx(joint, rel=1e-5)
    seen.clear()
    one = bridge_nll(NETWORK, SCHEDULER, quantizer, known, codes, mask, 1, 7)
    torch.testing.assert_close(one.one_sample, one.joint)


class MarkovPrior:
    """A first-order chain in raster order with a known table."""

    def __init__(self, num_codes: int):
        self.table = torch.randn(num_codes, num_codes).log_softmax(dim=1)

    def log_prob(self, codes: torch.Tensor) -> torch.Tensor:
        rows = codes.flatten(1)
        first = torch.full_like(rows[:, :1], -math.log(len(self.table)), dtype=torch.float32)
        return torch.cat([first, self.table[rows[:, :-1], rows[:, 1:]]], dim=1).view(codes.shape)


def test_pixelcnn_nll_of_the_last_codes_is_the_conditional_law():
    """All 3^6 maps of 2x3 enumerated; the last three positions given the first three. Then it adds up to 1, too."""
    prior = MarkovPrior(3)
    maps = torch.cartesian_prod(*[torch.arange(3)] * 6).view(-1, 2, 3)
    mask = torch.tensor([[False] * 3, [True] * 3])
    nll = pixelcnn_nll(prior, maps, mask)
    joint = prior.log_prob(maps).double().flatten(1).sum(dim=1).exp().view(27, 27)
    assert joint.sum().item() == pytest.approx(1)
    expected = -(joint / joint.sum(dim=1, keepdim=True)).log2() / 3
    torch.testing.assert_close(nll, expected.flatten(), rtol=1e-5, atol=1e-6)


def test_pixelcnn_nll_ignores_what_is_known():
    class Impossible(MarkovPrior):
        def log_prob(self, codes):
            log_p = super().log_prob(codes)
            log_p[:, 0, 0] = -math.inf
            return log_p

    codes, mask = torch.randint(3, (4, 2, 3)), torch.tensor([[0, 1, 1], [0, 0, 1]])
    prior = Impossible(3)
    expected = -prior.log_prob(codes)[:, [0, 0, 1], [1, 2, 2]].double().mean(dim=1) / math.log(2)
    torch.testing.assert_close(pixelcnn_nll(prior, codes, mask), expected)


CODES = torch.zeros(2, 3, 4, dtype=torch.long)
ONE_EMPTY = torch.zeros(2, 3, 4, dtype=torch.bool)
ONE_EMPTY[0] = True


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.bool), "at least one code of every image"),
        (ONE_EMPTY, "at least one code of every image"),
        (torch.ones(4, 3), "doesn't fit"),
        (torch.full((3, 4), 0.5), "binary"),
    ],
)
def test_masks_that_are_refused(quantizer, mask, message):
    with pytest.raises(ValueError, match=message):
        pixelcnn_nll(MarkovPrior(3), CODES, mask)
    with pytest.raises(ValueError, match=message):
        bridge_nll(NETWORK, SCHEDULER, quantizer, torch.zeros(2, 2, 3, 4), CODES, mask, 1, 1)


@pytest.mark.parametrize(
    ("z", "codes", "num_samples", "message"),
    [
        (torch.zeros(2, 2, 3, 3), CODES, 1, "don't fit"),
        (torch.zeros(2, 2, 3, 4), CODES + 8, 1, r"0\.\.7"),
        (torch.zeros(2, 2, 3, 4), CODES, 0, "num_samples"),
    ],
)
def test_bad_arguments_of_bridge_nll(quantizer, z, codes, num_samples, message):
    with pytest.raises(ValueError, match=message):
        bridge_nll(NETWORK, SCHEDULER, quantizer, z, codes, torch.ones(3, 4), num_samples, 1)
