"""How the codebook starts, moves and is counted: k-means, running means and revived codes, usage and perplexity."""

import math

import numpy as np
import pytest
import torch
from reference_quantizer import TYPES, from_rows, rows_of, squared_distances, with_codebook

from diffusion_bridge_vq.models import QUANTIZERS, EMAQuantizer, GumbelSoftmaxQuantizer

# ---------------------------------------------------------------------------------------------- running means


def test_ema_codebook_follows_the_formula_for_two_steps():
    """
    N <- g N + (1 - g) n, m <- g m + (1 - g) sum z, e = m / N (van den Oord et al. 2017, A.1), with n and sum z
    counted in fair shares of the batch, so that its size doesn't matter; from N = 1, m = e.
    """
    gamma, K, d = 0.8, 3, 2
    q = with_codebook(torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), "ema", ema_decay=gamma)
    e = q.embedding.weight.double().numpy().copy()
    N, m = np.ones(K), e.copy()
    for _ in range(2):
        z = 2.0 * torch.randn(2, d, 3, 5)
        nearest = squared_distances(z, torch.from_numpy(e)).argmin(-1).flatten().numpy()
        rows = rows_of(z).double().numpy()
        n, total = np.zeros(K), np.zeros((K, d))
        for k, row in zip(nearest, rows, strict=True):
            n[k] += 1
            total[k] += row
        assert n.min() >= 2  # no dead codes here
        z_q, loss, (_, _, codes) = q(z)
        assert (codes.flatten().numpy() == nearest).all()
        torch.testing.assert_close(rows_of(z_q).double(), torch.from_numpy(e[nearest]), atol=1e-5, rtol=0)
        assert abs(loss.item() - 0.25 * ((rows - e[nearest]) ** 2).mean()) < 1e-5  # with the codes before the update
        share = len(rows) / K
        N, m = gamma * N + (1 - gamma) * n / share, gamma * m + (1 - gamma) * total / share
        e = m / N[:, None]
        np.testing.assert_allclose(q.embedding.weight.numpy(), e, atol=1e-5)
        np.testing.assert_allclose(q.ema_count.numpy(), N, rtol=1e-6)


@pytest.mark.parametrize(("uses", "dead"), [(0, True), (2, True), (3, False)])
def test_ema_moves_codes_below_a_twentieth_of_their_share(uses, dead):
    """100 latents, 2 codes: a fair share is 50, and dead is what has less than 2.5."""
    q = with_codebook(torch.tensor([[0.0, 0.0], [100.0, 0.0]]), "ema", ema_decay=0.0)
    rows = torch.randn(100, 2)
    rows[:uses, 0] += 100.0
    q(from_rows(rows))
    torch.testing.assert_close(q.embedding.weight[0], rows[uses:].mean(0), atol=1e-5, rtol=0)
    if dead:
        gap = (rows - q.embedding.weight[1]).norm(dim=1).min().item()
        assert gap < 1e-4  # it sits on one of the batch's latents ...
        assert q.ema_count[1].item() == 1.0  # ... with a fair share
    else:
        torch.testing.assert_close(q.embedding.weight[1], rows[:uses].mean(0), atol=1e-4, rtol=0)
        assert q.ema_count[1].item() == pytest.approx(3 / 50)


def test_dead_codes_are_revived_onto_different_latents():
    codebook = 1000.0 + torch.randn(40, 2)
    codebook[0] = 0.0
    q = with_codebook(codebook, "ema", ema_decay=0.0)
    rows = torch.randn(400, 2)
    q(from_rows(rows))
    gaps = torch.cdist(q.embedding.weight[1:].double(), rows.double())
    assert gaps.min(1).values.max() < 1e-4
    assert gaps.argmin(1).unique().numel() > 20  # 39 draws of 400
    q(from_rows(rows))
    assert q.usage() > 0.9


# --------------------------------------------------------------------------------------------- initial codebook


def test_kmeans_is_lloyds_algorithm():
    """Ten rounds from the same first draw, in numpy."""
    z = torch.randn(3, 2, 5, 8)
    drawn, q = GumbelSoftmaxQuantizer(6, 2), GumbelSoftmaxQuantizer(6, 2)
    torch.manual_seed(2)
    drawn.initialize_codebook(z, "data")
    torch.manual_seed(2)
    q.initialize_codebook(z)
    rows, e = rows_of(z).double().numpy(), drawn.embedding.weight.detach().double().numpy()
    assert len(np.unique(e, axis=0)) == 6 and all((rows == code).all(1).any() for code in e)
    for _ in range(10):
        nearest = np.array([np.argmin([((row - code) ** 2).sum() for code in e]) for row in rows])
        e = np.stack([rows[nearest == k].mean(0) for k in range(6)])
    np.testing.assert_allclose(q.embedding.weight.detach().numpy(), e, atol=1e-5)


def test_a_new_codebook_forgets_the_running_counts():
    """Five clusters, 30 codes: several share the variance 2 * 0.1^2 of a cluster, and the first step takes none for
    dead, whatever was counted before."""
    centers = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0], [40.0, 0.0]])
    z = from_rows((centers[:, None] + 0.1 * torch.randn(5, 60, 2)).reshape(-1, 2))
    q = EMAQuantizer(30, 2)
    q.ema_count.fill_(1e-3)
    q.initialize_codebook(z)
    before = q.embedding.weight.clone()
    assert torch.cdist(before, centers).argmin(1).unique().numel() == 5
    assert squared_distances(z, before).min(-1).values.mean() < 2 * 0.1**2 / 2
    q.train()(z)
    assert (q.embedding.weight - before).abs().max() < 0.01


def test_kmeans_fills_empty_codes():
    """Two points only: whichever codes find nothing are put on a point again, none stays away or becomes nan."""
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(20, 1)
    q = GumbelSoftmaxQuantizer(8, 2)
    q.initialize_codebook(from_rows(rows))
    assert {tuple(code) for code in q.embedding.weight.tolist()} == {(1.0, 2.0), (3.0, 4.0)}


# -------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("kind", TYPES)
def test_usage_and_perplexity_over_batches(kind):
    def exp_entropy(counts: np.ndarray) -> float:
        p = counts[counts > 0] / counts.sum()
        return math.exp(-(p * np.log(p)).sum())

    K = 50
    q, histogram = QUANTIZERS[kind](K, 3), np.zeros(K)
    assert q.usage() == 0
    for _ in range(3):
        with torch.no_grad():
            _, _, (perplexity, _, codes) = q(torch.randn(2, 3, 7))
        counts = np.bincount(codes.flatten().numpy(), minlength=K)
        assert perplexity.item() == pytest.approx(exp_entropy(counts), rel=1e-5)
        histogram += counts
    assert 0 < (histogram > 0).sum() < K
    assert q.usage().item() == pytest.approx((histogram > 0).mean())
    assert q.perplexity().item() == pytest.approx(exp_entropy(histogram), rel=1e-5)
    q.reset_usage()
    assert q.usage() == 0 and not q.code_counts.any()


@pytest.mark.parametrize("kind", TYPES)
def test_eval_is_deterministic_and_keeps_its_state(kind):
    """Nothing is counted, moved or drawn."""
    q, z = QUANTIZERS[kind](9, 3).eval(), torch.randn(2, 3, 4, 5)
    before, rng = {n: b.clone() for n, b in (*q.named_buffers(), *q.named_parameters())}, torch.get_rng_state()
    first, second = q(z), q(z)
    assert torch.equal(first[0], second[0]) and torch.equal(first[2][2], second[2][2])
    assert torch.equal(torch.get_rng_state(), rng)
    for name, tensor in (*q.named_buffers(), *q.named_parameters()):
        assert torch.equal(tensor, before[name]), name
