"""Which gradient goes where, and what the phases of an end-to-end run do."""

import math

import pytest
import torch
from diffusers import UNet2DModel
from tiny_models import make_autoencoder, make_unet
from torch.distributions import Categorical, kl_divergence

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler
from diffusion_bridge_vq.losses import prior_loss
from diffusion_bridge_vq.models import denoise
from diffusion_bridge_vq.training import E2EObjective, PriorObjective, ReconstructionLoss, VQObjective


def tiny_vqvae(**changes) -> GumbelVQModel:
    image = {"in_channels": 1, "out_channels": 1, "sample_size": 8}
    return make_autoencoder(**image, latent_channels=4, num_vq_embeddings=8, **changes)


def tiny_unet(**changes) -> UNet2DModel:
    return make_unet(sample_size=4, in_channels=4, out_channels=4, **changes)


def e2e(mode: str = "stable", **kwargs) -> E2EObjective:
    vqvae = tiny_vqvae(quantizer_type=kwargs.pop("quantizer_type", "gumbel"))
    return E2EObjective(vqvae, tiny_unet(), OUBridgeScheduler(), mode=mode, **kwargs).train()


def gradients(objective: E2EObjective, term: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of one loss term by component, flat; an empty tensor where none arrives. Same noise at every call."""
    objective.zero_grad()
    torch.manual_seed(1)
    objective(images).losses[term].backward()
    parts = {
        "encoder": objective.vqvae.encoder,
        "decoder": objective.vqvae.decoder,
        "codebook": objective.vqvae.quantize.embedding,
        "unet": objective.unet,
    }
    return {
        name: torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None] or [torch.empty(0)])
        for name, module in parts.items()
    }


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_stable_gives_the_encoder_a_share_of_the_priors_gradient():
    """The prior's own gradient doesn't depend on the share; the encoder's is linear in it, and none at 0."""
    objective = e2e(encoder_gradient_weight=1.0)
    full = gradients(objective, "prior", IMAGES)
    assert full["encoder"].abs().max() > 0 and full["unet"].abs().max() > 0
    assert len(full["decoder"]) == len(full["codebook"]) == 0  # diffusion sees latents, not codes
    for share in (0.25, 0.0):
        objective.encoder_gradient_weight = share
        objective.set_step(0)
        part = gradients(objective, "prior", IMAGES)
        assert torch.equal(part["unet"], full["unet"])
        assert torch.allclose(part["encoder"], share * full["encoder"], rtol=1e-4, atol=1e-8)


def test_the_share_is_the_gradient_through_frozen_prior_weights():
    """Against autograd with the U-Net's weights frozen and the same noise, through the same network."""
    objective = e2e(encoder_gradient_weight=0.3)
    part = gradients(objective, "prior", IMAGES)["encoder"]

    objective.zero_grad()
    objective.unet.requires_grad_(False)
    torch.manual_seed(1)
    latents = objective.vqvae.encode(IMAGES).latents
    objective.vqvae.quantize(latents)  # draws its Gumbel noise first
    t, noise = torch.randint(1000, (4,)), torch.randn_like(latents)
    z_t = objective.scheduler.add_noise(latents, noise, t)
    output = denoise(objective.unet, objective.scheduler, z_t, t)
    (0.3 * prior_loss(objective.scheduler, output, latents, noise, t)).backward()
    expected = torch.cat([p.grad.flatten() for p in objective.vqvae.encoder.parameters()])
    assert torch.allclose(part, expected, rtol=1e-4, atol=1e-7)  # biases before a norm have rounding alone


def test_paper_mode_lets_every_gradient_flow():
    objective = e2e("paper", encoder_gradient_weight=0.0)  # the share is a knob of "stable"
    prior = gradients(objective, "prior", IMAGES)
    assert prior["encoder"].abs().max() > 0 and prior["unet"].abs().max() > 0
    assert gradients(objective, "terminal", IMAGES)["encoder"].abs().max() > 0
    regularization = gradients(objective, "regularization", IMAGES)
    assert regularization["encoder"].abs().max() > 0 and regularization["codebook"].abs().max() > 0
    reconstruction = gradients(objective, "reconstruction", IMAGES)
    assert all(reconstruction[name].abs().max() > 0 for name in ("encoder", "decoder", "codebook"))
    assert len(reconstruction["unet"]) == 0
    # Algorithm 1 has three terms, and L_T for its last summand
    assert set(objective(IMAGES).losses) == {"reconstruction", "prior", "regularization", "terminal"}


def test_paper_mode_has_the_sums_of_the_elbo_on_average():
    """
    The ELBO over T: of T summands one is drawn; L_T and L_0^reg, which have no step of the bridge, join with 1 / T.
    """
    objective = e2e("paper")
    z_e = objective.vqvae.encode(IMAGES).latents
    losses = objective(IMAGES).losses
    assert losses["terminal"].item() == pytest.approx(objective.scheduler.terminal_kl(z_e).mean().item() / 1000)

    # one step: t = 1 can't but be drawn
    objective = e2e("paper", regularization="kl", regularization_weight=0.7)
    objective.scheduler = OUBridgeScheduler(1, trained_betas=[0.3], eta=2.0)
    torch.manual_seed(1)
    losses = objective(IMAGES).losses
    torch.manual_seed(1)
    objective.vqvae.quantize(z_e := objective.vqvae.encode(IMAGES).latents)  # draws its Gumbel noise first
    torch.randint(1, (4,))
    z_t = math.sqrt(0.7) * z_e + math.sqrt(2 * 0.3) * torch.randn_like(z_e)  # s^2 = 2
    codebook, expected = objective.vqvae.quantize.embedding.weight.double(), 0.0
    for z, tau in ((z_e, 10.0), (z_t, 0.1)):
        logits = -(z.movedim(1, -1)[..., None, :] - codebook).square().sum(-1)
        expected = expected + kl_divergence(Categorical(logits=logits), Categorical(logits=logits / tau)).mean() / 4
    assert losses["regularization"].item() == pytest.approx(0.7 * expected.item(), rel=1e-4)
    assert losses["terminal"].item() == pytest.approx(objective.scheduler.terminal_kl(z_e).mean().item())


def test_the_weight_of_l_rec_is_not_the_judges():
    """The discriminator learns as fast whatever the weight of the decoder's terms, which it multiplies."""
    objective, found = e2e(reconstruction=ReconstructionLoss(1, adversarial_weight=0.5)), []
    for weight in (1.0, 4.0):
        objective.reconstruction_weight = weight
        torch.manual_seed(1)
        found.append({name: loss.item() for name, loss in objective(IMAGES).losses.items()})
    once, fourfold = found
    for name in ("discriminator", "codebook", "prior", "regularization"):
        assert fourfold[name] == pytest.approx(once[name], rel=1e-4) and once[name] != 0
    for name in ("reconstruction", "adversarial"):
        assert fourfold[name] == pytest.approx(4 * once[name], rel=1e-4) and once[name] != 0


def test_paper_mode_can_shrink_its_latents_and_stable_cannot():
    for mode, rms in (("paper", 0.1), ("stable", 1.0)):
        objective = e2e(mode)
        before = objective(IMAGES).metrics["latent_rms"].item()
        with torch.no_grad():
            objective.vqvae.quant_conv.weight.mul_(0.1)
            objective.vqvae.quant_conv.bias.mul_(0.1)
        assert objective(IMAGES).metrics["latent_rms"].item() == pytest.approx(rms * before, rel=1e-3)


def test_phases_of_a_stable_run():
    objective = e2e(encoder_gradient_weight=0.5, joint_from=10, ramp_steps=20, freeze_from=50)
    expected = {0: (False, False, 0.0), 9: (False, False, 0.0), 10: (True, False, 0.0), 20: (True, False, 0.25)}
    expected |= {30: (True, False, 0.5), 49: (True, False, 0.5), 50: (True, True, 0.5)}
    for step, state in expected.items():
        objective.set_step(step)
        assert (objective.joint, objective.frozen, objective.encoder_gradient_scale.item()) == state
    objective.set_step(0)
    assert "prior" not in objective(IMAGES).losses

    objective.set_step(50)
    objective.train()  # the loop may call it at any time
    before = {k: v.clone() for k, v in objective.vqvae.state_dict().items()}
    output = objective(IMAGES)
    assert set(output.losses) == {"prior"}
    output.losses["prior"].backward()
    assert all(p.grad is None for p in objective.vqvae.parameters())
    assert all(torch.equal(v, before[k]) for k, v in objective.vqvae.state_dict().items())  # running statistics too


def test_decoder_mode_moves_prior_and_decoder_alone():
    objective = e2e("decoder", joint_from=10, decoder_fraction=0.5)
    assert set(objective(IMAGES).losses) == {"reconstruction", "codebook"}  # the autoencoder alone, as in stage 1
    objective.set_step(10)
    before = {k: v.clone() for k, v in objective.vqvae.state_dict().items()}
    reconstruction, prior = (gradients(objective, term, IMAGES) for term in ("reconstruction", "prior"))
    assert all(torch.equal(v, before[k]) for k, v in objective.vqvae.state_dict().items())  # running statistics too
    assert [name for name, grad in reconstruction.items() if len(grad)] == ["decoder"]
    assert [name for name, grad in prior.items() if len(grad)] == ["unet"]

    alone = PriorObjective(objective.vqvae, objective.unet, objective.scheduler)  # the prior learns as in stage 2
    assert torch.equal(gradients(alone, "prior", IMAGES)["unet"], prior["unet"])


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_decoder_learns_from_codes_that_the_prior_predicts(noise):
    """Written out: half of the batch; the second image from the nearest codes of the predicted z_0."""
    objective = e2e("decoder", decoder_fraction=0.5, decoder_noise=noise)
    vqvae, scheduler = objective.vqvae, objective.scheduler
    torch.manual_seed(1)
    found = objective(IMAGES).losses["reconstruction"]

    z_e = vqvae.encode(IMAGES[:2]).latents
    torch.manual_seed(1)
    objective.draw(IMAGES.new_empty(4, 4, 4, 4))  # of the prior's loss
    t = torch.randint(len(scheduler) // 2, (2,)) if noise else torch.zeros(2, dtype=torch.long)
    z_t = scheduler.add_noise(z_e, torch.randn_like(z_e), t)
    z_0 = scheduler.predict_original_sample(objective.unet(z_t, t).sample, t, z_t)
    start = torch.stack([z_e[0], z_0[1] if noise else z_e[1]])
    codebook = vqvae.quantize.embedding.weight
    z_q = codebook[torch.cdist(start.movedim(1, -1).reshape(-1, 4), codebook).argmin(1)].reshape(2, 4, 4, 4)
    decoded = vqvae.decode(z_q.movedim(-1, 1), force_not_quantize=True).sample
    assert found.item() == pytest.approx((decoded - IMAGES[:2]).square().mean().item(), rel=1e-5)


def test_prior_objective_leaves_the_autoencoder_alone():
    vqvae = tiny_vqvae()
    objective = PriorObjective(vqvae, tiny_unet(), OUBridgeScheduler()).train()
    before = {k: v.clone() for k, v in vqvae.state_dict().items()}
    torch.manual_seed(1)
    from_images = objective(IMAGES).losses["prior"]
    from_images.backward()
    assert not vqvae.training and all(p.grad is None for p in vqvae.parameters())
    assert all(torch.equal(v, before[k]) for k, v in vqvae.state_dict().items())
    with torch.no_grad():
        latents = vqvae.encode(IMAGES).latents
    torch.manual_seed(1)
    assert torch.equal(objective(latents=latents).losses["prior"], from_images)


def test_vq_objective_is_written_out():
    vqvae = tiny_vqvae(quantizer_type="ste")
    objective = VQObjective(vqvae, ReconstructionLoss(l1_weight=0.5)).train()
    losses = objective(IMAGES).losses
    z_e = vqvae.encode(IMAGES).latents
    codebook = vqvae.quantize.embedding.weight
    z_q = (
        codebook[torch.cdist(z_e.movedim(1, -1).reshape(-1, 4), codebook).argmin(1)].reshape(4, 4, 4, 4).movedim(-1, 1)
    )
    x_hat = vqvae.decode(z_q, force_not_quantize=True).sample
    assert torch.allclose(losses["codebook"], 1.25 * (z_e - z_q).square().mean(), rtol=1e-4)
    rec = (x_hat - IMAGES).square().mean() + 0.5 * (x_hat - IMAGES).abs().mean()
    assert torch.allclose(losses["reconstruction"], rec, rtol=1e-4)


def test_labels():
    objective = PriorObjective(tiny_vqvae(), tiny_unet(num_class_embeds=4), OUBridgeScheduler(), class_dropout=1.0)
    labels = torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="label_column"):
        objective(IMAGES)
    objective.train()

    def loss(y: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        objective.zero_grad()
        value = objective(IMAGES, y).losses["prior"]
        value.backward()
        return objective.unet.class_embedding.weight.grad.abs().sum(1)

    used = loss(labels) > 0  # everything dropped: only the null class, the last, is trained
    assert used.tolist() == [False, False, False, True]
    objective.class_dropout = 0.0
    assert (loss(labels) > 0).tolist() == [True, True, True, False]


def test_unknown_mode():
    with pytest.raises(ValueError, match="decoder, stable or paper"):
        e2e("naive")
