"""Gumbel noise of the backward pass is that of the forward pass, on devices with generators of their own, too."""

import torch

from diffusion_bridge_vq.models import GumbelSoftmaxQuantizer, blockwise


def test_devices_whose_generator_is_not_the_cpus(monkeypatch):
    """As on MPS or XPU: without a generator, draws come from one that `torch.get_rng_state` doesn't know."""
    own, drawn, exponential_ = torch.Generator().manual_seed(1), [], torch.Tensor.exponential_

    def on_device(tensor, *args, generator=None):
        drawn.append(exponential_(tensor, *args, generator=own if generator is None else generator).clone())
        return tensor

    monkeypatch.setattr(torch.Tensor, "exponential_", on_device)
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", 3 * 11)
    q, z = GumbelSoftmaxQuantizer(11, 3), torch.randn(2, 3, 7, requires_grad=True)
    z_q, loss, _ = q(z)
    forward = len(drawn)
    assert forward == 5 and not torch.equal(drawn[0], drawn[1])  # blocks of three latents
    (z_q.square().sum() + loss).backward()
    for first, again in zip(drawn[:forward], drawn[forward:], strict=True):
        assert torch.equal(first, again)


def test_one_number_of_the_global_generator_a_call():
    """So that draws after it don't depend on the sizes, and the backward pass takes none."""
    after = []
    for size in (1, 50):
        q, z = GumbelSoftmaxQuantizer(11, 3), torch.randn(2, 3, size)
        torch.manual_seed(5)
        z_q, loss, _ = q(z)
        (z_q.square().sum() + loss).backward()
        after.append(torch.rand(4))
    torch.manual_seed(5)
    assert torch.equal(*after) and not torch.equal(after[0], torch.rand(4))
    q.eval()
    torch.manual_seed(5)
    q(z)  # nothing is drawn
    drawn = torch.rand(4)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(4))


def test_two_calls_have_different_noise():
    q, z = GumbelSoftmaxQuantizer(11, 3), torch.zeros(1, 3, 100)
    assert not torch.equal(q(z)[2][2], q(z)[2][2])
