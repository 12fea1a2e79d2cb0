"""Training with `code_posterior`: what the network is made of, what it learns from, what it is refused for."""

import math

import pytest
import torch
from tiny_run import TINY, config

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline
from diffusion_bridge_vq.models import CodeUNet2DModel
from diffusion_bridge_vq.training import E2EConfig, PriorConfig, VQConfig, build_objective, train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vq")
    train(config(VQConfig, folder, checkpoint_every=0))["vqvae"].save_pretrained(folder / "vqvae")
    return folder


@pytest.fixture(scope="module")
def pipeline(tokenizer, tmp_path_factory):
    """The folder of a trained and saved pipeline."""
    folder = tmp_path_factory.mktemp("prior")
    run = config(PriorConfig, folder, init_from=tokenizer, code_posterior=True, cache_latents=True, max_train_steps=4)
    trained = train(run)
    DiffusionBridgeVQPipeline(**trained).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def test_the_saved_network_has_codebook_and_noise_levels(pipeline):
    pipe = DiffusionBridgeVQPipeline.from_pretrained(pipeline)
    assert type(pipe.unet) is CodeUNet2DModel
    assert torch.equal(pipe.unet.codebook, pipe.vqvae.quantize.embedding.weight)
    abar, s2 = 1.0, pipe.scheduler.config.eta**2 / 2
    for i, beta in enumerate(pipe.scheduler.betas.double().tolist()):
        abar *= 1 - beta
        expected = max(-60.0, math.log(abar / (s2 * (1 - abar))))
        assert pipe.unet.log_snr[i].item() == pytest.approx(expected, abs=2e-3)
    latents = pipe(3, 2, generator=torch.Generator().manual_seed(0), output_type="latent").images
    hull = pipe.unet.codebook.amin(0), pipe.unet.codebook.amax(0)  # means of code vectors lie between them
    assert bool(
        (latents.amin((0, 2, 3)) >= hull[0] - 1e-5).all() and (latents.amax((0, 2, 3)) <= hull[1] + 1e-5).all()
    )


def test_what_lies_between_latent_and_code_is_not_learned(tokenizer, tmp_path):
    """Latents and their code vectors give one loss, number for number."""
    objective = build_objective(config(PriorConfig, tmp_path, init_from=tokenizer, code_posterior=True)).eval()
    z_e = torch.randn(5, 4, 4, 4)
    z_q = objective.vqvae.decode_codes(objective.vqvae.encode_codes(z_e))
    losses = []
    for latents in (z_e, z_q):
        torch.manual_seed(0)
        losses.append(objective(latents=latents).losses["prior"].item())
    assert losses[0] == losses[1]
    assert not torch.equal(z_e, z_q)


def test_known_parts_of_completed_images_are_codes(pipeline):
    pipe = DiffusionBridgeVQInpaintPipeline.from_pretrained(pipeline)
    image, mask = torch.rand(1, 1, 8, 8), torch.zeros(8, 8)
    mask[:, 4:] = 1
    z_0 = pipe(image, mask, num_inference_steps=2, output_type="latent").images
    known = z_0[:, :, :, :2].movedim(1, -1).reshape(-1, 4)
    assert torch.cdist(known, pipe.vqvae.quantize.embedding.weight).amin(dim=1).max() < 1e-5


def test_end_to_end_does_not_start_from_it(pipeline, tmp_path):
    with pytest.raises(ValueError, match="needs codes that don't change"):
        build_objective(config(E2EConfig, tmp_path, init_from=pipeline))


def test_it_predicts_z_0_alone(tokenizer, tmp_path):
    run = config(
        PriorConfig, tmp_path, init_from=tokenizer, code_posterior=True, scheduler={"prediction_type": "epsilon"}
    )
    with pytest.raises(ValueError, match="must be 'sample', got 'epsilon'"):
        build_objective(run)


def test_channels_and_process_have_to_fit():
    with pytest.raises(ValueError, match="the number of codes is `num_codes`"):
        CodeUNet2DModel(**TINY["unet"] | {"out_channels": 8})
    unet = CodeUNet2DModel(**TINY["unet"], num_codes=8, num_noise_levels=10)
    with pytest.raises(ValueError, match=r"codes of shape \(8, 4\), got \(9, 4\)"):
        unet.set_process(torch.zeros(9, 4), torch.zeros(10))
