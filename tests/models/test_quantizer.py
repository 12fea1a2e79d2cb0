"""The quantizer against loops in float64, diffusers' VectorQuantizer, torch's gumbel_softmax and exact laws."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import VectorQuantizer
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_bridge_vq.models import GumbelQuantizer, quantizer

TYPES = ["gumbel", "ste", "ema"]
SHAPES = [(2, 3, 4, 5), (2, 3, 7)]
# 99.99 % quantiles of chi-square, by degrees of freedom
CHI_SQUARE = {4: 23.51, 5: 25.74}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def squared_distances(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """||z - e_k||^2 by loops in float64: (B, d, ...), (K, d) -> (B, ..., K)."""
    flat, e = z.detach().double().flatten(2).numpy(), codebook.detach().double().numpy()
    out = np.zeros((flat.shape[0], flat.shape[2], len(e)))
    for b in range(flat.shape[0]):
        for n in range(flat.shape[2]):
            for k in range(len(e)):
                for c in range(flat.shape[1]):
                    out[b, n, k] += (flat[b, c, n] - e[k, c]) ** 2
    return torch.from_numpy(out).reshape(z.shape[0], *z.shape[2:], len(e))


def rows_of(z: torch.Tensor) -> torch.Tensor:
    """(B, d, ...) -> (n, d)."""
    return torch.stack([z.flatten(2)[b, :, n] for b in range(len(z)) for n in range(z[b, 0].numel())])


def from_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, d) -> (1, d, n)."""
    return rows.T[None]


# ------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_minus_squared_distances(shape):
    q, z = GumbelQuantizer(6, 3), torch.randn(shape, requires_grad=True)
    logits, weight = q.logits(z), torch.randn(shape[0], *shape[2:], 6)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), -squared_distances(z, q.embedding.weight), atol=1e-5, rtol=1e-5)

    to_z, to_e = torch.autograd.grad((logits * weight).sum(), (z, q.embedding.weight))
    difference = z.detach().movedim(1, -1)[..., None, :] - q.embedding.weight.detach()  # z - e_k, (B, ..., K, d)
    force = 2 * weight[..., None] * difference
    torch.testing.assert_close(to_z, -force.sum(-2).movedim(-1, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(to_e, force.reshape(-1, 6, 3).sum(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", [2**22, 3 * 13 + 1, 13, 5])  # everything, three rows, one row, less than one row
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", TYPES)
def test_nearest_code_in_any_blocks(monkeypatch, kind, shape, block):
    q, z = GumbelQuantizer(13, 3, kind).eval(), torch.randn(shape)
    distances = squared_distances(z, q.embedding.weight)
    nearest, smallest = distances.argmin(-1), distances.min(-1).values
    monkeypatch.setattr(quantizer, "_BLOCK_ELEMENTS", block)
    assert torch.equal(q.encode_codes(z), nearest)

    z_q, loss, (perplexity, encodings, codes) = q(z)
    assert torch.equal(codes, nearest) and encodings is None
    flat = torch.stack([q.embedding.weight[k] for k in nearest.flatten()]).reshape(*nearest.shape, 3)
    torch.testing.assert_close(z_q, flat.movedim(-1, 1), atol=1e-6, rtol=1e-6)
    histogram = np.bincount(nearest.flatten().numpy(), minlength=13) / nearest.numel()
    entropy = -sum(p * math.log(p) for p in histogram if p > 0)
    assert abs(perplexity.item() - math.exp(entropy)) < 1e-4
    expected = {
        "gumbel": 0.25 * (smallest + torch.logsumexp(-distances, -1)).mean() / 3,
        "ste": 1.25 * smallest.mean() / 3,
        "ema": 0.25 * smallest.mean() / 3,
    }
    assert abs(loss.item() - expected[kind].item()) < 1e-5


def crowded(bias: float = 8.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (1, 4, 60) that bfloat16 holds exactly, codes so near each other that bfloat16 distances go wrong."""
    z = (bias + 0.2 * torch.randn(1, 4, 60)).bfloat16()
    codebook = bias + 0.2 * torch.randn(20, 4)
    nearest = squared_distances(z, codebook).argmin(-1)
    rows, half = rows_of(z), codebook.bfloat16()
    expanded = 2 * rows @ half.T - half.square().sum(1) - rows.square().sum(1, keepdim=True)
    direct = -(rows[:, None] - half).square().sum(-1)
    for wrong in (expanded, direct):
        assert wrong.dtype == torch.bfloat16
        assert (wrong.argmax(1) != nearest[0]).float().mean() > 0.1  # the case tells the two apart
    return z, codebook, nearest


@pytest.mark.parametrize("kind", TYPES)
def test_half_precision_latents_have_float32_distances(kind):
    z, codebook, nearest = crowded()
    q = GumbelQuantizer(20, 4, kind).eval()
    with torch.no_grad():
        q.embedding.weight.copy_(codebook)
    z_q, loss, (_, _, codes) = q(z)
    assert z_q.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert torch.equal(codes, nearest) and torch.equal(q.encode_codes(z), nearest)
    assert torch.equal(z_q[0].T, codebook[nearest[0]].bfloat16())

    # the codebook itself in bfloat16: still float32 distances, now to the rounded codes
    q.to(torch.bfloat16)
    exact = squared_distances(z, codebook.bfloat16())
    chosen = exact.gather(-1, q.encode_codes(z)[..., None])[..., 0]
    torch.testing.assert_close(chosen, exact.min(-1).values, atol=1e-4, rtol=0)  # equidistant codes may swap


@pytest.mark.parametrize("kind", TYPES)
def test_autocast_changes_nothing_in_eval(kind):
    z, codebook, nearest = crowded()
    z = z.float()
    q = GumbelQuantizer(20, 4, kind).eval()
    with torch.no_grad():
        q.embedding.weight.copy_(codebook)
    plain_z_q, plain_loss, _ = q(z)
    with torch.autocast("cpu", torch.bfloat16):
        z_q, loss, (_, _, codes) = q(z)
        logits = q.logits(z)
        drawn = q.sample_codes(z, 1e-6)  # cold: the nearest
    assert torch.equal(codes, nearest)
    assert torch.equal(drawn, nearest)
    assert torch.equal(z_q, plain_z_q)
    torch.testing.assert_close(logits.double(), -squared_distances(z, codebook), atol=2e-4, rtol=0)
    torch.testing.assert_close(loss, plain_loss, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("block", [2**22, 20 * 7])
def test_autocast_changes_nothing_in_gumbel_training(monkeypatch, block):
    z, codebook, _ = crowded()
    monkeypatch.setattr(quantizer, "_BLOCK_ELEMENTS", block)
    results = []
    for enabled in (False, True):
        q, latents = GumbelQuantizer(20, 4), z.float().requires_grad_()
        with torch.no_grad():
            q.embedding.weight.copy_(codebook)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            z_q, loss, (_, _, codes) = q(latents)
        ((z_q * torch.arange(60.0)).sum() + loss).backward()
        results.append((codes, z_q, loss, latents.grad, q.embedding.weight.grad))
    for plain, cast in zip(*results, strict=True):
        torch.testing.assert_close(cast, plain, atol=1e-6, rtol=1e-6)


# --------------------------------------------------------------------------------------------- gradients and losses


def gumbel_reference(q: GumbelQuantizer, z: torch.Tensor, rows_per_block: int):
    """Autograd through torch's gumbel_softmax(hard=True) @ E, block after block: z_q, loss, codes."""
    codebook, rows, z_q, nll, codes = q.embedding.weight, rows_of(z), [], [], []
    for block in rows.split(rows_per_block):
        logits = -(block[:, None, :] - codebook[None]).square().sum(-1)
        one_hot = F.gumbel_softmax(logits, tau=q.temperature, hard=True)
        z_q.append(one_hot @ codebook)
        codes.append(one_hot.argmax(1))
        nll.append(F.cross_entropy(logits, codes[-1], reduction="none"))
    shape = (z.shape[0], *z.shape[2:])
    loss = q.commitment_weight * torch.cat(nll).mean() / z.shape[1]
    return torch.cat(z_q).reshape(*shape, -1).movedim(-1, 1), loss, torch.cat(codes).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows_per_block", [1000, 3])
def test_gumbel_is_torchs_gumbel_softmax(monkeypatch, shape, rows_per_block):
    """With blocks of three rows, each block's noise is drawn again in the backward pass and must be the same."""
    monkeypatch.setattr(quantizer, "_BLOCK_ELEMENTS", rows_per_block * 11 + 4)
    weight, results = torch.randn(shape), []
    q = GumbelQuantizer(11, 3, temperature=0.7, commitment_weight=0.4)
    z = 0.5 * torch.randn(shape)
    for quantize in (q, lambda z: gumbel_reference(q, z, rows_per_block)):
        leaf = z.clone().requires_grad_()
        torch.manual_seed(5)
        z_q, loss, codes = quantize(leaf)
        torch.randn(100)  # the generator has moved on before the backward pass
        gradients = torch.autograd.grad((z_q * weight).sum() + 3 * loss, (leaf, q.embedding.weight))
        results.append((z_q, loss, codes[2] if isinstance(codes, tuple) else codes, *gradients))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
    assert results[0][2].unique().numel() > 3
    assert results[0][3].abs().min() > 0


@pytest.mark.parametrize(
    ("kind", "training"), [("ste", True), ("ema", True), ("gumbel", False), ("ste", False), ("ema", False)]
)
def test_straight_through_copies_the_gradient(kind, training):
    q = GumbelQuantizer(9, 3, kind).train(training)
    z, weight = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    codebook = q.embedding.weight.detach().clone()  # "ema" moves it in forward
    z_q, _, _ = q(z)
    nearest = squared_distances(z, codebook).argmin(-1)
    torch.testing.assert_close(z_q, codebook[nearest].movedim(-1, 1), atol=1e-6, rtol=1e-6)
    (to_z,) = torch.autograd.grad((z_q * weight).sum(), z, retain_graph=True)
    assert torch.equal(to_z, weight)
    if kind != "ema":
        (to_e,) = torch.autograd.grad((z_q * weight).sum(), q.embedding.weight, allow_unused=True)
        assert to_e is None or not to_e.any()


def test_ste_is_diffusers_vector_quantizer_with_the_right_weights():
    """`legacy=False` has beta on the commitment term, as eq. 3 of van den Oord et al. 2017."""
    stock, q = VectorQuantizer(9, 3, beta=0.4, legacy=False), GumbelQuantizer(9, 3, "ste", commitment_weight=0.4)
    with torch.no_grad():
        stock.embedding.weight.copy_(q.embedding.weight)
    z, weight, results = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), []
    for module in (stock, q):
        leaf = z.clone().requires_grad_()
        z_q, loss, (_, _, codes) = module(leaf)
        gradients = torch.autograd.grad((z_q * weight).sum() + loss, (leaf, module.embedding.weight))
        results.append((z_q, loss, codes.flatten(), *gradients))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ste", "ema"])
def test_commitment_and_codebook_loss_written_out(kind):
    beta, d = 0.3, 3
    q = GumbelQuantizer(5, d, kind, commitment_weight=beta)
    z = torch.randn(1, d, 8, requires_grad=True)
    e = q.embedding.weight.detach().clone()
    _, loss, (_, _, codes) = q(z)
    value, to_z, to_e = 0.0, np.zeros((1, d, 8)), np.zeros((5, d))
    for n, k in enumerate(codes[0].tolist()):
        for c in range(d):
            gap = z[0, c, n].item() - e[k, c].item()
            value += (beta + (kind == "ste")) * gap**2 / (8 * d)
            to_z[0, c, n] = 2 * beta * gap / (8 * d)
            to_e[k, c] -= 2 * gap / (8 * d)
    assert abs(loss.item() - value) < 1e-6
    loss.backward()
    np.testing.assert_allclose(z.grad.numpy(), to_z, atol=1e-6)
    if kind == "ste":
        np.testing.assert_allclose(q.embedding.weight.grad.numpy(), to_e, atol=1e-6)
    else:
        assert not q.embedding.weight.requires_grad


@pytest.mark.parametrize("block", [2**22, 5 * 4])
def test_gumbel_loss_is_the_negative_log_probability(monkeypatch, block):
    """Section 3.2 for T = 0, with the squares the print leaves out: ||z - e_k||^2 + log sum_j exp(-||z - e_j||^2)."""
    monkeypatch.setattr(quantizer, "_BLOCK_ELEMENTS", block)
    q, z = GumbelQuantizer(5, 3, commitment_weight=0.4), torch.randn(2, 3, 9, requires_grad=True)
    _, loss, (_, _, codes) = q(z)
    distances, total = squared_distances(z, q.embedding.weight), 0.0
    assert (codes != distances.argmin(-1)).any()  # drawn, not nearest
    to_z, e = np.zeros((2, 3, 9)), q.embedding.weight.tolist()
    for b in range(2):
        for n in range(9):
            d_k = distances[b, n].tolist()
            normaliser = sum(math.exp(-d) for d in d_k)
            total += d_k[codes[b, n]] + math.log(normaliser)
            for c in range(3):  # of the distance: 2 (z - e_k); of the logsumexp: -2 (z - sum_j p_j e_j)
                mean = sum(math.exp(-d) / normaliser * e[j][c] for j, d in enumerate(d_k))
                to_z[b, c, n] = 0.4 * 2 * (mean - e[codes[b, n]][c]) / (18 * 3)
    assert abs(loss.item() - 0.4 * total / 18 / 3) < 1e-5
    loss.backward()
    np.testing.assert_allclose(z.grad.numpy(), to_z, atol=1e-5)


# --------------------------------------------------------------------------------------------------- laws of the draws


def chi_square(codes: torch.Tensor, p: torch.Tensor) -> float:
    expected = p.double() * codes.numel()
    assert expected.min() > 10
    return ((torch.bincount(codes.flatten(), minlength=len(p)) - expected).square() / expected).sum().item()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("block", [2**22, 6 * 500])
def test_sampled_codes_follow_the_softmax(monkeypatch, temperature, block):
    """40000 draws at each of two latents; chi-square at the 99.99 % quantile."""
    monkeypatch.setattr(quantizer, "_BLOCK_ELEMENTS", block)
    q = GumbelQuantizer(6, 2)
    with torch.no_grad():
        q.embedding.weight.copy_(0.7 * q.embedding.weight)
    points = 0.3 * torch.randn(2, 2, 1)
    z = points.expand(2, 2, 40000)
    law = torch.softmax(-squared_distances(points, q.embedding.weight) / temperature, -1)[:, 0]
    before = torch.get_rng_state()
    codes = q.sample_codes(z, temperature, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)  # noise from the given generator only
    for b in range(2):
        assert chi_square(codes[b], law[b]) < CHI_SQUARE[5]
    assert torch.equal(codes, q.sample_codes(z, temperature, torch.Generator().manual_seed(1)))
    assert not torch.equal(codes, q.sample_codes(z, temperature, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("temperature", [0.4, 1.0])
@pytest.mark.parametrize("block", [2**22, 5 * 1000])
def test_gumbel_training_draws_from_softmax_of_minus_distance(monkeypatch, temperature, block):
    """The temperature softens the gradient; the drawn code has the law softmax(-||z - e||^2) whatever it is."""
    monkeypatch.setattr(quantizer, "_BLOCK_ELEMENTS", block)
    q = GumbelQuantizer(5, 2, temperature=temperature)
    with torch.no_grad():
        q.embedding.weight.copy_(0.7 * q.embedding.weight)
        point = 0.3 * torch.randn(1, 2, 1)
        _, _, (_, _, codes) = q(point.expand(1, 2, 40000))
    law = torch.softmax(-squared_distances(point, q.embedding.weight), -1)[0, 0]
    assert chi_square(codes, law) < CHI_SQUARE[4]


# ---------------------------------------------------------------------------------------------------------- EMA


def test_ema_codebook_follows_the_formula_for_two_steps():
    """
    N <- g N + (1 - g) n, m <- g m + (1 - g) sum z, e = m / N (van den Oord et al. 2017, A.1), with n and sum z
    counted in fair shares of the batch, so that its size doesn't matter; from N = 1, m = e.
    """
    gamma, K, d = 0.8, 3, 2
    q = GumbelQuantizer(K, d, "ema", ema_decay=gamma)
    with torch.no_grad():
        q.embedding.weight.copy_(torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]))
    e = q.embedding.weight.detach().double().numpy().copy()
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
    q = GumbelQuantizer(2, 2, "ema", ema_decay=0.0)
    with torch.no_grad():
        q.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))
    rows = torch.randn(100, 2)
    rows[:uses, 0] += 100.0
    q(from_rows(rows))
    torch.testing.assert_close(q.embedding.weight[0], rows[uses:].mean(0), atol=1e-5, rtol=0)
    gap = (rows - q.embedding.weight[1]).norm(dim=1).min().item()
    if dead:
        assert gap < 1e-4  # it sits on one of the batch's latents ...
        assert q.ema_count[1].item() == 1.0  # ... with a fair share
    else:
        torch.testing.assert_close(q.embedding.weight[1], rows[:uses].mean(0), atol=1e-4, rtol=0)
        assert q.ema_count[1].item() == pytest.approx(3 / 50)


def test_dead_codes_are_revived_onto_different_latents():
    q = GumbelQuantizer(40, 2, "ema", ema_decay=0.0)
    with torch.no_grad():
        q.embedding.weight[1:].add_(1000.0)
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
    drawn, q = GumbelQuantizer(6, 2), GumbelQuantizer(6, 2)
    torch.manual_seed(2)
    drawn.initialize_codebook(z, "data")
    torch.manual_seed(2)
    q.initialize_codebook(z, "kmeans")
    rows, e = rows_of(z).double().numpy(), drawn.embedding.weight.detach().double().numpy()
    assert len(np.unique(e, axis=0)) == 6 and all((rows == code).all(1).any() for code in e)
    for _ in range(10):
        nearest = np.array([np.argmin([((row - code) ** 2).sum() for code in e]) for row in rows])
        e = np.stack([rows[nearest == k].mean(0) for k in range(6)])
    np.testing.assert_allclose(q.embedding.weight.detach().numpy(), e, atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_kmeans_finds_separated_clusters(kind):
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0], [40.0, 0.0]])
    rows = (centres[:, None] + 0.1 * torch.randn(5, 60, 2)).reshape(-1, 2)
    q = GumbelQuantizer(30, 2, kind)
    q.initialize_codebook(from_rows(rows))
    gaps = torch.cdist(q.embedding.weight.detach(), centres)
    assert gaps.min(1).values.max() < 0.5  # every code lies in a cluster,
    assert set(gaps.argmin(1).tolist()) == set(range(5))  # every cluster has one,
    distances = squared_distances(from_rows(rows), q.embedding.weight).min(-1).values
    assert distances.mean() < 2 * 0.1**2 / 2  # and several codes share the variance 2 * 0.1^2 of a cluster
    if kind == "ema":  # the new codes start with a fair share each: the first step doesn't take them for dead
        before = q.embedding.weight.clone()
        q.train()(from_rows(rows))
        assert (q.embedding.weight - before).abs().max() < 0.01


def test_kmeans_fills_empty_codes():
    """Two points only: whichever codes find nothing are put on a point again, none stays away or becomes nan."""
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(20, 1)
    q = GumbelQuantizer(8, 2)
    q.initialize_codebook(from_rows(rows))
    assert {tuple(code) for code in q.embedding.weight.tolist()} == {(1.0, 2.0), (3.0, 4.0)}


# -------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("kind", TYPES)
def test_usage_and_perplexity_over_batches(kind):
    K = 50
    q, histogram = GumbelQuantizer(K, 3, kind), np.zeros(K)
    assert q.usage() == 0
    for _ in range(3):
        with torch.no_grad():
            _, _, (perplexity, _, codes) = q(torch.randn(2, 3, 7))
        counts = np.bincount(codes.flatten().numpy(), minlength=K)
        histogram += counts
        p = counts[counts > 0] / counts.sum()
        assert perplexity.item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert 0 < (histogram > 0).sum() < K
    p = histogram[histogram > 0] / histogram.sum()
    perplexity = math.exp(-(p * np.log(p)).sum())
    q.eval()
    q(torch.randn(2, 3, 40))  # eval doesn't count
    assert q.usage().item() == pytest.approx((histogram > 0).mean())
    assert q.perplexity().item() == pytest.approx(perplexity, rel=1e-5)
    q.reset_usage()
    assert q.usage() == 0 and not q.code_counts.any()


@pytest.mark.parametrize("kind", TYPES)
def test_eval_is_deterministic_and_keeps_its_state(kind):
    q, z = GumbelQuantizer(9, 3, kind).eval(), torch.randn(2, 3, 4, 5)
    before, rng = {n: b.clone() for n, b in (*q.named_buffers(), *q.named_parameters())}, torch.get_rng_state()
    first, second = q(z), q(z)
    assert torch.equal(first[0], second[0]) and torch.equal(first[2][2], second[2][2])
    assert torch.equal(torch.get_rng_state(), rng)
    for name, tensor in (*q.named_buffers(), *q.named_parameters()):
        assert torch.equal(tensor, before[name]), name


# ------------------------------------------------------------------------------------------------------ memory


class Recorder(TorchDispatchMode):
    """The largest tensor that any operation returned, and the memory that is still alive of all of them."""

    def __enter__(self):
        self.largest, self.storages = 0, {}
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = StorageWeakRef(tensor.untyped_storage())
                self.storages[storage.cdata] = (storage, tensor.untyped_storage().nbytes())
        return out

    def bytes_alive(self) -> int:
        return sum(nbytes for storage, nbytes in self.storages.values() if not storage.expired())


@pytest.mark.parametrize("kind", TYPES)
def test_memory_is_that_of_a_block(monkeypatch, kind):
    """512 latents against 1024 codes in 8 channels, 16 latents at a time: n K is 32 blocks, n K d 256."""
    n, K, d, block = 512, 1024, 8, 2**14
    monkeypatch.setattr(quantizer, "_BLOCK_ELEMENTS", block)
    q, z = GumbelQuantizer(K, d, kind), torch.randn(2, d, 16, 16, requires_grad=True)
    with Recorder() as training:
        z_q, loss, _ = q(z)
        held = training.bytes_alive()
        (z_q.square().mean() + loss).backward()
    assert training.largest <= block
    assert held < n * K  # for the backward pass; the distances alone would be 4 n K bytes
    q.eval()
    with torch.no_grad(), Recorder() as evaluation:
        q(z)
        q.encode_codes(z)
        q.sample_codes(z)
        q.initialize_codebook(z.detach())
    assert evaluation.largest <= block
    with torch.no_grad(), Recorder() as whole:  # the recorder sees what it should
        logits = q.logits(z)
        assert whole.bytes_alive() >= 4 * logits.numel()
    assert whole.largest == n * K


@pytest.mark.parametrize("kind", ["gumbel", "ema"])
def test_16384_codes_on_64_by_64_positions(kind):
    """In a sixteenth of the dense memory; codes as by dense distances in float64, but for a few that are as near."""
    model = GumbelQuantizer(16_384, 2, kind).eval()
    z = torch.randn(1, 2, 64, 64)
    with torch.no_grad(), Recorder() as blocks:
        codes = model(z)[2][2].flatten()
    assert blocks.largest <= 4096 * 16_384 // 16
    with torch.no_grad(), Recorder() as dense:
        rows = z[0].flatten(1).T.double()
        distances = torch.cdist(rows, model.embedding.weight.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert dense.largest == 4096 * 16_384
    assert (distances.argmin(dim=1) == codes).float().mean() > 0.99
    chosen = distances.square().gather(1, codes[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.square().amin(dim=1), atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------- codes, interface, errors


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_decode_codes_looks_rows_up(dtype):
    q = GumbelQuantizer(9, 3)
    codes = torch.randint(9, (2, 4, 5), dtype=dtype)
    z_q = q.decode_codes(codes)
    for b, i, j in np.ndindex(2, 4, 5):
        assert torch.equal(z_q[b, :, i, j], q.embedding.weight[int(codes[b, i, j])])
    assert torch.equal(q.encode_codes(z_q), codes.long())
    assert torch.equal(q.decode_codes(codes[:, 0])[1, :, 3], q.embedding.weight[int(codes[1, 0, 3])])


def test_codebook_entry_is_diffusers():
    stock, q = VectorQuantizer(9, 3, beta=0.25), GumbelQuantizer(9, 3)
    stock.load_state_dict(q.state_dict())
    indices = torch.randint(9, (40,))
    assert torch.equal(q.get_codebook_entry(indices, (2, 4, 5, 3)), stock.get_codebook_entry(indices, (2, 4, 5, 3)))
    assert torch.equal(q.get_codebook_entry(indices, None), stock.get_codebook_entry(indices, None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer_type": "vq"}, "gumbel, ste or ema"),
        ({"n_e": 0}, "at least one code"),
        ({"vq_embed_dim": 0}, "at least one code"),
        ({"temperature": 0.0}, "temperature"),
        ({"commitment_weight": -0.1}, "commitment_weight"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ema_decay": -0.1}, "ema_decay"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        GumbelQuantizer(**{"n_e": 4, "vq_embed_dim": 3, **arguments})


def test_bad_input():
    q = GumbelQuantizer(4, 3)
    for z in (torch.zeros(2, 4, 5, 5), torch.zeros(2, 3), torch.zeros(2, 5, 3)):
        for method in (q, q.encode_codes, q.logits, q.sample_codes, q.initialize_codebook):
            with pytest.raises(ValueError, match=r"\(B, 3, h, w\)"):
                method(z)
    for codes in (torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool)):
        with pytest.raises(ValueError, match="must be integers"):
            q.decode_codes(codes)
    for codes in (torch.tensor([[4]]), torch.tensor([[-1]])):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            q.decode_codes(codes)
    with pytest.raises(ValueError, match="data or kmeans"):
        q.initialize_codebook(torch.zeros(1, 3, 2), "random")
    with pytest.raises(ValueError, match="no latents"):
        q.initialize_codebook(torch.zeros(0, 3, 2))
