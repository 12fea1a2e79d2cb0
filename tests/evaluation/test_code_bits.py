"""Bits per code against entropies that are known: of the toy's walks, of independent codes, of a codebook alone."""

import math

import pytest
import torch

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.evaluation import bridge_code_bits
from diffusion_bridge_vq.models import GumbelSoftmaxQuantizer
from diffusion_bridge_vq.toy.networks import MixtureDenoiser
from diffusion_bridge_vq.toy.walks import all_toy_sequences, toy_codebook

BRIDGE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}


@pytest.fixture
def quantizer():
    quantizer = GumbelSoftmaxQuantizer(8, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(toy_codebook())
    return quantizer.eval()


class Exact(torch.nn.Module):
    """The walks' posterior mean, as what the scheduler takes."""

    def __init__(self, scheduler: OUBridgeScheduler):
        super().__init__()
        self.scheduler = scheduler
        means = toy_codebook()[all_toy_sequences()].transpose(1, 2)
        self.inner = MixtureDenoiser(means, 0.0, scheduler)

    def forward(self, x, timestep):
        z_0, kind = self.inner(x, timestep), self.scheduler.config.prediction_type
        if kind == "sample":
            return z_0
        snr = self.scheduler.signal_to_noise(timestep).to(x)[:, None, None]
        signal, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
        noise = (x - signal * z_0) / sigma
        return noise if kind == "epsilon" else signal * noise - sigma * z_0


class Nothing(torch.nn.Module):
    def forward(self, x, timestep):
        return torch.zeros_like(x)


def bits(network, scheduler, quantizer, codes, **options) -> torch.Tensor:
    return bridge_code_bits(network.eval(), scheduler, quantizer, codes, torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("s", [0.5, 2.0])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_an_exact_network_needs_the_entropy(quantizer, prediction_type, s):
    """128 walks, equally likely, of five codes: 7 / 5 bits."""
    scheduler = OUBridgeScheduler(**BRIDGE | {"prediction_type": prediction_type}, eta=s * math.sqrt(2))
    found = bits(Exact(scheduler), scheduler, quantizer, all_toy_sequences().repeat(8, 1), batch_size=300)
    assert found.shape == (1024,)
    assert found.mean().item() == pytest.approx(7 / 5, abs=0.03)


def test_codes_that_the_network_holds_impossible_cost_more(quantizer):
    """Under the exact law of walks: random maps, of which 1 in 256 is one."""
    scheduler = OUBridgeScheduler(**BRIDGE)
    codes = torch.randint(8, (512, 5), generator=torch.Generator().manual_seed(1))
    assert bits(Exact(scheduler), scheduler, quantizer, codes).mean() > 2.8


@pytest.mark.parametrize("steps", [5, 1000])
def test_without_a_network_it_is_the_size_of_the_codebook(quantizer, steps):
    """log2 K, also for codes that occur unevenly: the cross-entropy against equal chances."""
    scheduler = OUBridgeScheduler(steps, **BRIDGE)
    codes = torch.randint(8, (512, 3, 3), generator=torch.Generator().manual_seed(1)) // 2 % 3
    found = bits(Nothing(), scheduler, quantizer, codes)
    assert found.mean().item() == pytest.approx(3, abs=0.06)


def test_equal_vectors_are_one_code(quantizer):
    with torch.no_grad():
        quantizer.embedding.weight[4:] = quantizer.embedding.weight[:4]
    scheduler = OUBridgeScheduler(**BRIDGE)
    codes = torch.randint(8, (512, 3, 3), generator=torch.Generator().manual_seed(1))
    assert bits(Nothing(), scheduler, quantizer, codes).mean().item() == pytest.approx(2, abs=0.06)
    with torch.no_grad():
        quantizer.embedding.weight.fill_(1.0)
    with pytest.raises(ValueError, match="code vectors are the same"):
        bits(Nothing(), scheduler, quantizer, codes)


def test_classes_reach_the_network(quantizer):
    """A network that is given the map itself needs next to nothing; only its first calls see noise alone."""
    scheduler = OUBridgeScheduler(**BRIDGE)
    codes = all_toy_sequences()

    class Given(torch.nn.Module):
        def forward(self, x, timestep, class_labels):
            return quantizer.decode_codes(codes[class_labels])

    assert bits(Given(), scheduler, quantizer, codes, batch_size=50, class_labels=torch.arange(128)).mean() < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"codes": a["codes"][:1]}, "two maps"),
        (lambda a: a | {"batch_size": 0}, "batch_size"),
        (lambda a: a | {"codes": a["codes"] + 8}, "must lie in 0..7"),
        (lambda a: a | {"scheduler": object()}, "`OUBridgeScheduler` itself, got object"),
        (lambda a: a | {"unet": Nothing()}, "training mode"),
    ],
)
def test_what_is_refused(quantizer, change, message):
    arguments = {"unet": Nothing().eval(), "scheduler": OUBridgeScheduler(**BRIDGE), "quantizer": quantizer}
    arguments["codes"] = all_toy_sequences()
    with pytest.raises(ValueError, match=message):
        bridge_code_bits(**change(arguments))
