"""Two real processes with half a batch each end with what one process with the whole batch has."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from diffusion_bridge_vq.models import EMAQuantizer, GumbelSoftmaxQuantizer, LatentNormalizer

D, K = 3, 5


def whole_batch() -> torch.Tensor:
    return torch.randn(8, D, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 + 1


def work(z: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two training steps of normaliser and EMA codebook; the gradient of a loss that depends on the statistics."""
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


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    result = work(whole_batch()[4 * rank : 4 * rank + 4])
    started = GumbelSoftmaxQuantizer(K, D)
    torch.manual_seed(rank)  # different latents and draws: rank 0's codebook must win
    started.initialize_codebook(torch.randn(4, D, 2, 2))
    torch.save(result | {"started": started.embedding.weight.data}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_statistics_codebook_and_gradient_are_those_of_one_process(tmp_path):
    mp.spawn(process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
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
