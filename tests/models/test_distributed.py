"""Two real processes with half a batch each end with what one process with the whole batch has."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from warm_processes import launch

from diffusion_bridge_vq.models import EMAQuantizer, GumbelSoftmaxQuantizer, LatentNormalizer

D, K = 3, 5


def whole_batch() -> torch.Tensor:
    return torch.randn(8, D, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 + 1


def work(z: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two training steps of normalizer and EMA codebook; the gradient of a loss that depends on the statistics."""
    torch.manual_seed(0)
    normalizer, quantizer = LatentNormalizer(D).train(), EMAQuantizer(K, D).train()
    quantizer.embedding.weight.data *= 0.3
    for scale in (1.0, 2.0):
        z_in = (scale * z).requires_grad_()
        z_q, loss, _ = quantizer(normalizer(z_in))
        # a mean over the whole batch: each process contributes its share, as DistributedDataParallel averages
        (loss + z_q.pow(3).mean()).backward()
    names = dict(normalizer.state_dict(), **quantizer.state_dict())
    return names | {"grad": z_in.grad, "usage": quantizer.usage(), "perplexity": quantizer.perplexity()}


def shifted_batch() -> torch.Tensor:
    """Standard deviations of about 1 around means of 10^4, which differ between the halves of the batch by 1."""
    z = torch.randn(8, D, 4, 4, generator=torch.Generator().manual_seed(4))
    return 1e4 + z + (torch.arange(8) >= 4)[:, None, None, None]


def shifted_statistics(z: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, statistics and gradient of the normalizer alone; the gradient of a mean over the whole batch."""
    normalizer, z = LatentNormalizer(D, momentum=1.0).train(), z.requires_grad_()
    out = normalizer(z)
    out.pow(3).mean().backward()
    names = {"out": out.detach(), "var": normalizer.running_var, "mean": normalizer.running_mean, "gradient": z.grad}
    return {f"shifted_{name}": tensor for name, tensor in names.items()}


def save_results(folder: Path) -> None:
    rank = dist.get_rank()
    result = work(whole_batch()[4 * rank : 4 * rank + 4])
    started = GumbelSoftmaxQuantizer(K, D)
    torch.manual_seed(rank)  # different latents and draws: rank 0's codebook must win
    started.initialize_codebook(torch.randn(4, D, 2, 2))
    shifted = shifted_statistics(shifted_batch()[4 * rank : 4 * rank + 4])
    torch.save(result | {"started": started.embedding.weight.data} | shifted, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    launch(folder, save_results, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_statistics_codebook_and_gradient_are_those_of_one_process(both):
    first, second = both
    alone = work(whole_batch())
    assert (alone["ema_count"] > 0.05).all()  # nothing revived: revival draws from a process's own latents
    for name in alone:
        if name == "grad":  # each process's loss is a mean over half the batch
            together = torch.cat([first["grad"], second["grad"]]) / 2
            assert torch.allclose(together, alone["grad"], atol=1e-6)
        else:
            assert torch.equal(first[name], second[name]), name
            assert torch.allclose(first[name].float(), alone[name].float(), rtol=1e-4, atol=1e-5), name
    assert torch.equal(first["started"], second["started"])


def test_means_far_from_zero_leave_the_variance_exact(both):
    """At 10^4 standard deviations E[z^2] - E[z]^2 would be off by several times the variance in float32."""
    first, second = both
    z = shifted_batch().double()
    for here in both:
        torch.testing.assert_close(here["shifted_var"].double(), z.var((0, 2, 3), correction=0), rtol=1e-3, atol=0)
        torch.testing.assert_close(here["shifted_mean"].double(), z.mean((0, 2, 3)), rtol=1e-6, atol=0)
    alone = shifted_statistics(shifted_batch())
    together = {name: torch.cat([first[name], second[name]]) for name in ("shifted_out", "shifted_gradient")}
    torch.testing.assert_close(together["shifted_out"], alone["shifted_out"], rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(together["shifted_gradient"] / 2, alone["shifted_gradient"], rtol=1e-2, atol=2e-5)
