"""Quantizing holds one block of distances, not the whole matrix."""

import pytest
import torch
from reference_quantizer import TYPES
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_bridge_vq.models import QUANTIZERS, blockwise


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
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", block)
    q, z = QUANTIZERS[kind](K, d), torch.randn(2, d, 16, 16, requires_grad=True)
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
    """In a sixteenth of the dense memory; at every 16th position the code is as near as any in float64."""
    q = QUANTIZERS[kind](16_384, 2).eval()
    z = torch.randn(1, 2, 64, 64)
    with torch.no_grad(), Recorder() as blocks:
        codes = q(z)[2][2].flatten()
    assert blocks.largest <= 4096 * 16_384 // 16
    rows, e = z[0].flatten(1).T[::16].double(), q.embedding.weight.detach().double()
    distances = (rows[:, None] - e).square().sum(-1)
    assert (distances.argmin(1) == codes[::16]).float().mean() > 0.98  # a few are as near in float32
    chosen = distances.gather(1, codes[::16, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1), atol=1e-5, rtol=0)
