"""
The quantizer against loops in float64, diffusers' VectorQuantizer, torch's gumbel_softmax and exact laws. What moves
the codebook is in test_quantizer_codebook.py, memory in test_quantizer_memory.py.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import VectorQuantizer as StockVectorQuantizer
from reference_quantizer import TYPES, rows_of, squared_distances, with_codebook

from diffusion_bridge_vq.models import QUANTIZERS, GumbelSoftmaxQuantizer, blockwise

SHAPES = [(2, 3, 4, 5), (2, 3, 7)]
CHI_SQUARE = 25.74  # the 99.99 % quantile at five degrees of freedom


# ------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_minus_squared_distances(shape):
    q, z = GumbelSoftmaxQuantizer(6, 3), torch.randn(shape, requires_grad=True)
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
    q, z = QUANTIZERS[kind](13, 3).eval(), torch.randn(shape)
    distances = squared_distances(z, q.embedding.weight)
    nearest, smallest = distances.argmin(-1), distances.min(-1).values
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", block)
    assert torch.equal(q.encode_codes(z), nearest)

    z_q, loss, (_, encodings, codes) = q(z)
    assert torch.equal(codes, nearest) and encodings is None
    torch.testing.assert_close(z_q, q.embedding.weight[nearest].movedim(-1, 1), atol=1e-6, rtol=1e-6)
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
    q = with_codebook(codebook, kind).eval()
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
    q = with_codebook(codebook, kind).eval()
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
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", block)
    results = []
    for enabled in (False, True):
        q, latents = with_codebook(codebook), z.float().requires_grad_()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            z_q, loss, (_, _, codes) = q(latents)
        ((z_q * torch.arange(60.0)).sum() + loss).backward()
        results.append((codes, z_q, loss, latents.grad, q.embedding.weight.grad))
    for plain, cast in zip(*results, strict=True):
        torch.testing.assert_close(cast, plain, atol=1e-6, rtol=1e-6)


# --------------------------------------------------------------------------------------------- gradients and losses


def gumbel_reference(q: GumbelSoftmaxQuantizer, z: torch.Tensor, rows_per_block: int):
    """
    Autograd through torch's gumbel_softmax(hard=True) @ E, block after block, in eval straight through the nearest:
    z_q, loss, codes. The loss is -log p(k | z_e) of section 3.2 for T = 0, with the squares that the print leaves out.
    """
    codebook, rows, z_q, nll, codes = q.embedding.weight, rows_of(z), [], [], []
    for block in rows.split(rows_per_block):
        logits = -(block[:, None, :] - codebook[None]).square().sum(-1)
        if q.training:
            one_hot = F.gumbel_softmax(logits, tau=q.temperature, hard=True)
            z_q.append(one_hot @ codebook)
        else:
            one_hot = F.one_hot(logits.argmax(1), len(codebook))
            z_q.append(block + (one_hot.float() @ codebook - block).detach())
        codes.append(one_hot.argmax(1))
        nll.append(F.cross_entropy(logits, codes[-1], reduction="none"))
    shape = (z.shape[0], *z.shape[2:])
    loss = q.commitment_weight * torch.cat(nll).mean() / z.shape[1]
    return torch.cat(z_q).reshape(*shape, -1).movedim(-1, 1), loss, torch.cat(codes).reshape(shape)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows_per_block", [1000, 3])
def test_gumbel_is_torchs_gumbel_softmax(monkeypatch, shape, rows_per_block, training):
    """With blocks of three rows, each block's noise is drawn again in the backward pass and must be the same."""
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", rows_per_block * 11 + 4)
    weight, results = torch.randn(shape), []
    q = GumbelSoftmaxQuantizer(11, 3, temperature=0.7, commitment_weight=0.4).train(training)
    z = 0.5 * torch.randn(shape)
    torch.manual_seed(5)
    drawn = int(torch.randint(2**63 - 1, ()))  # the seed of its noise
    for quantize, seed in ((q, 5), (lambda z: gumbel_reference(q, z, rows_per_block), drawn)):
        leaf = z.clone().requires_grad_()
        torch.manual_seed(seed)
        z_q, loss, codes = quantize(leaf)
        torch.randn(100)  # the generator has moved on before the backward pass
        gradients = torch.autograd.grad((z_q * weight).sum() + 3 * loss, (leaf, q.embedding.weight))
        results.append((z_q, loss, codes[2] if isinstance(codes, tuple) else codes, *gradients))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
    assert results[0][2].unique().numel() > 3
    assert results[0][3].abs().min() > 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["ste", "ema"])
def test_straight_through_is_diffusers_vector_quantizer(kind, training):
    """`legacy=False` has beta on the commitment term, as eq. 3 of van den Oord et al. 2017; "ema" has it alone."""
    beta = 0.4
    q = QUANTIZERS[kind](9, 3, commitment_weight=beta).train(training)
    stock = StockVectorQuantizer(9, 3, beta=beta, legacy=False)
    with torch.no_grad():
        stock.embedding.weight.copy_(q.embedding.weight)  # before "ema" moves it
    z, weight, results, losses = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), [], []
    for module in (stock, q):
        leaf = z.clone().requires_grad_()
        z_q, loss, (_, _, codes) = module(leaf)
        ((z_q * weight).sum() + loss).backward()
        results.append((z_q, codes.flatten(), leaf.grad))
        losses.append(loss)
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(losses[1], losses[0] * (beta / (1 + beta) if kind == "ema" else 1))
    if kind == "ema":
        assert not q.embedding.weight.requires_grad
    else:
        torch.testing.assert_close(q.embedding.weight.grad, stock.embedding.weight.grad, atol=1e-6, rtol=1e-5)


# --------------------------------------------------------------------------------------------- law of the draws


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("block", [2**22, 6 * 500])
def test_sampled_codes_follow_the_softmax(monkeypatch, temperature, block):
    """40000 draws at each of two latents."""
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", block)
    q = with_codebook(0.7 * torch.randn(6, 2))
    points = 0.3 * torch.randn(2, 2, 1)
    z = points.expand(2, 2, 40000)
    law = torch.softmax(-squared_distances(points, q.embedding.weight) / temperature, -1)[:, 0]
    before = torch.get_rng_state()
    codes = q.sample_codes(z, temperature, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)  # noise from the given generator only
    for b in range(2):
        expected = 40000 * law[b]
        assert expected.min() > 10
        counts = torch.bincount(codes[b], minlength=6)
        assert ((counts - expected).square() / expected).sum() < CHI_SQUARE
    assert torch.equal(codes, q.sample_codes(z, temperature, torch.Generator().manual_seed(1)))
    assert not torch.equal(codes, q.sample_codes(z, temperature, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_training_draws_from_the_softmax_at_temperature_1_whatever_its_own(temperature):
    """Two codes at squared distances 0 and 1: 1 / (1 + e) of the draws are the far one."""
    q = with_codebook(torch.tensor([[0.0], [1.0]]))
    q.temperature = temperature
    _, _, (_, _, codes) = q.train()(torch.zeros(1, 1, 40_000))
    drawn = q.sample_codes(torch.zeros(1, 1, 40_000))
    for found in (codes, drawn):
        assert found.float().mean().item() == pytest.approx(1 / (1 + np.e), abs=0.01)  # standard deviation 0.002


def test_a_generator_per_sample_draws_as_one_by_one():
    q, z = with_codebook(torch.randn(8, 3)), torch.zeros(3, 3, 6, 6)
    single = torch.cat([q.sample_codes(z[:1], generator=torch.Generator().manual_seed(s)) for s in (3, 4, 5)])
    generators = [torch.Generator().manual_seed(s) for s in (3, 4, 5)]
    assert torch.equal(q.sample_codes(z, generator=generators), single) and len(single[0].unique()) > 3
    with pytest.raises(ValueError, match="Got 3 generators for a batch of 2"):
        q.sample_codes(z[:2], generator=generators)


# --------------------------------------------------------------------------------------- codes, interface, errors


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_decode_codes_looks_rows_up(dtype):
    q = GumbelSoftmaxQuantizer(9, 3)
    codes = torch.randint(9, (2, 4, 5), dtype=dtype)
    z_q = q.decode_codes(codes)
    for b, i, j in np.ndindex(2, 4, 5):
        assert torch.equal(z_q[b, :, i, j], q.embedding.weight[int(codes[b, i, j])])
    assert torch.equal(q.encode_codes(z_q), codes.long())
    assert torch.equal(q.decode_codes(codes[:, 0])[1, :, 3], q.embedding.weight[int(codes[1, 0, 3])])


def test_codebook_entry_is_diffusers():
    stock, q = StockVectorQuantizer(9, 3, beta=0.25), GumbelSoftmaxQuantizer(9, 3)
    stock.load_state_dict(q.state_dict())
    indices = torch.randint(9, (40,))
    assert torch.equal(q.get_codebook_entry(indices, (2, 4, 5, 3)), stock.get_codebook_entry(indices, (2, 4, 5, 3)))
    assert torch.equal(q.get_codebook_entry(indices, None), stock.get_codebook_entry(indices, None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_e": 0}, "at least 1, got 0"),
        ({"vq_embed_dim": 0}, "at least 1, got 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"commitment_weight": -0.1}, "commitment_weight"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ema_decay": -0.1}, "ema_decay"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        GumbelSoftmaxQuantizer(**{"n_e": 4, "vq_embed_dim": 3, **arguments})


def test_bad_input():
    q = GumbelSoftmaxQuantizer(4, 3)
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
    with pytest.raises(ValueError, match=r"is empty, its shape is \(0, 3, 2\)"):
        q.initialize_codebook(torch.zeros(0, 3, 2))
