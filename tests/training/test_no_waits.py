"""
Nothing in a training step makes the host wait for the device. Without a GPU this is seen on the "meta" device: reading
a value, copying between devices and indexing by masks would wait, and each of them is an operator that can be counted.
"""

import contextlib

import torch
from host_waits import HostWaits
from tiny_models import make_autoencoder, make_unet

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler, PixelCNNPrior
from diffusion_bridge_vq.training import E2EConfig, E2EObjective, PixelCNNObjective
from diffusion_bridge_vq.training.ema import AveragedWeights


def test_a_training_step_has_none(monkeypatch):
    attention = {
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    }
    for kind in ("gumbel", "ema"):
        for mode in ("decoder", "stable", "paper"):
            with torch.device("meta"):
                vqvae = make_autoencoder(in_channels=1, out_channels=1, quantizer_type=kind)
                unet = make_unet(**attention)
            scheduler = OUBridgeScheduler(z_star=[0.1] * 3)
            # the last step is that of the next phase
            phase = {"decoder": {}, "stable": {"freeze_from": 1}, "paper": {}}[mode]
            objective = E2EObjective(vqvae, unet, scheduler, mode, weighting="elbo", **phase)
            objective.train().to("meta")
            averaged = AveragedWeights(unet, 0.9)
            # autocast knows no meta device; it is off in these blocks anyway
            monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
            seen = []
            for step in (0, 0, 1):  # the first puts the coefficients on the device, once
                objective.set_step(step)
                waits = HostWaits()
                with waits:
                    output = objective(torch.empty(2, 1, 16, 16, device="meta"))
                    torch.stack(list(output.losses.values())).sum().backward()
                    torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
                    averaged.update_parameters(unet)
                seen.append(waits.seen)
            assert seen[1:] == [[], []]
            monkeypatch.undo()
    with HostWaits() as waits:  # and the counter counts
        float(torch.empty((), device="meta") + 1)
        torch.ones(2).to("meta")
    assert len(waits.seen) == 2


def test_a_pixelcnn_step_has_none(monkeypatch):
    config = E2EConfig.from_preset("digits", batch_size=2)
    with torch.device("meta"):
        vqvae = GumbelVQModel(in_channels=1, out_channels=1, **config.vqvae)
        prior = PixelCNNPrior(64, width=8, num_layers=2, sample_size=4, num_class_embeds=4)
    objective = PixelCNNObjective(vqvae, prior).train().to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    labels = torch.zeros(2, dtype=torch.long, device="meta")
    for inputs in (
        {"images": torch.empty(2, 1, 16, 16, device="meta")},
        {"codes": torch.zeros(2, 4, 4, dtype=torch.long, device="meta")},
    ):
        with HostWaits() as waits:
            objective(**inputs, class_labels=labels).losses["cross_entropy"].backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        assert waits.seen == []
