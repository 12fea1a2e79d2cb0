"""Images as conditions of a U-Net: what it is given, without any, and what exact networks make of them."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_autoencoder, make_unet
from torch import nn

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.evaluation import bridge_code_bits
from diffusion_bridge_vq.models import (
    ConditionedUNet,
    GumbelSoftmaxQuantizer,
    check_channels,
    condition_map,
    count_condition_channels,
    refuse_image_condition,
    replace_condition,
)
from diffusion_bridge_vq.models.denoiser import call_network
from diffusion_bridge_vq.sampling import sample_latents

X, T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])


class Recorder(nn.Module):
    """Keeps what it is called with; predicts a constant for all that has a condition or a class, else 0."""

    def __init__(self, in_channels: int, classes: int | None = None):
        super().__init__()
        self.config = SimpleNamespace(
            in_channels=in_channels, out_channels=3, num_class_embeds=classes, block_out_channels=(8, 8)
        )

    def forward(self, x, timestep, class_labels=None):
        self.x, self.timestep, self.class_labels = x, timestep, class_labels
        return x[:, -1:].expand(-1, 3, -1, -1)  # whether there is a condition


def test_squares_of_pixels_become_channels():
    """Channel c f^2 + f i + j at (y, x) is the pixel (f y + i, f x + j) of channel c; the last one is 1."""
    images = torch.arange(2 * 3 * 4 * 4).float().reshape(2, 3, 4, 4)
    found = condition_map(images, 2)
    assert found.shape == (2, count_condition_channels(3, 4, 2), 2, 2) == (2, 13, 2, 2)
    for c, i, j, y, x in itertools.product(range(3), range(2), range(2), range(2), range(2)):
        assert found[1, 4 * c + 2 * i + j, y, x] == images[1, c, 2 * y + i, 2 * x + j]
    assert (found[:, -1] == 1).all()


def test_small_images_are_repeated():
    found = condition_map(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 4)
    assert found[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    with pytest.raises(ValueError, match="3 x 3 pixels doesn't fit latents of 4 x 4"):
        condition_map(torch.zeros(1, 1, 3, 3), 4)


def test_the_network_gets_latents_and_then_the_condition():
    network, shown = Recorder(5), condition_map(torch.rand(2, 1, 4, 4), 4)
    output = call_network(ConditionedUNet(network, shown), X, T)
    assert torch.equal(network.x, torch.cat([X, shown], dim=1)) and output.shape == X.shape
    assert network.class_labels is None


@pytest.mark.parametrize("classes", [None, 4])
def test_guidance_goes_from_no_condition_and_no_class(classes):
    """3 times what the condition adds, on an odd grid, which is padded."""
    network, shown = Recorder(5, classes), condition_map(torch.rand(2, 1, 3, 3), 3)
    labels = None if classes is None else torch.tensor([1, 2])
    x = X[..., :3, :3]
    output = call_network(ConditionedUNet(network, shown), x, T, labels, guidance_scale=3.0)
    null, given = network.x[..., :3, :3].chunk(2)
    assert torch.equal(null, torch.cat([x, torch.zeros_like(shown)], dim=1))
    assert torch.equal(given, torch.cat([x, shown], dim=1))
    assert network.timestep.tolist() == [3, 700, 3, 700]
    assert classes is None or network.class_labels.tolist() == [3, 3, 1, 2]
    assert (output == 3).all() and output.shape == x.shape


def test_conditions_that_do_not_fit_are_refused():
    shown = condition_map(torch.rand(2, 1, 4, 4), 4)
    with pytest.raises(ValueError, match=r"must be \(B, 1, h, w\) for this U-Net.*got \(2, 2, 4, 4\)"):
        ConditionedUNet(Recorder(4), shown)
    unet = ConditionedUNet(Recorder(5), shown)
    for x in (X[:1], X[..., :2]):
        with pytest.raises(ValueError, match="must be on the grid of the samples"):
            call_network(unet, x, T[: len(x)])
    with pytest.raises(ValueError, match=r"input has 5 channels, but the latents have 3\. If it draws from images"):
        call_network(Recorder(5), X, T)
    with pytest.raises(ValueError, match=r"draws from images \(`condition`\), which a test doesn't take"):
        refuse_image_condition(Recorder(5), "a test doesn't take")
    refuse_image_condition(Recorder(3), "a test doesn't take")
    with pytest.raises(ValueError, match="map of its condition 2; make it with in_channels=5 and out_channels=3"):
        check_channels(make_unet(), make_autoencoder(), condition_channels=2)


@torch.no_grad()
def test_a_new_condition_changes_nothing_at_first():
    torch.manual_seed(0)
    unet, shown = make_unet(sample_size=4).eval(), condition_map(torch.rand(2, 1, 8, 8), 4)
    expected = call_network(unet, X, T)
    replace_condition(unet, 5)
    assert (unet.config.in_channels, unet.conv_in.in_channels) == (8, 8)
    torch.testing.assert_close(call_network(ConditionedUNet(unet, shown), X, T), expected)
    unet.conv_in.weight.add_(torch.randn_like(unet.conv_in.weight))  # as if it had learned
    without = call_network(ConditionedUNet(unet, torch.zeros_like(shown)), X, T)
    assert not torch.allclose(call_network(ConditionedUNet(unet, shown), X, T), without)
    replace_condition(unet, 2)  # another: begins as the old one without any
    other = condition_map(torch.rand(2, 1, 2, 2), 4)
    torch.testing.assert_close(call_network(ConditionedUNet(unet, other), X, T), without)
    replace_condition(unet, 0)
    torch.testing.assert_close(call_network(unet, X, T), without)


# ------------------------------------------------------------------------------------- bits, against enumeration

CODES = torch.tensor(list(itertools.product((0, 1), repeat=4))).reshape(16, 2, 2)
MAPS = 2.0 * CODES[:, None] - 1  # codes -1 and 1; the images are their codes


class Exact(nn.Module):
    """E[z_0 | z_t, condition] of maps that are equally likely, by enumeration. `shown`: what each is drawn from."""

    def __init__(self, scheduler: OUBridgeScheduler, shown: torch.Tensor):
        super().__init__()
        self.config = SimpleNamespace(in_channels=1 + shown.shape[1], out_channels=1, num_class_embeds=None)
        self.scheduler, self.shown = scheduler, shown

    def forward(self, x, timestep):
        snr = self.scheduler.signal_to_noise(timestep.reshape(-1)).to(x)[:, None]
        seen = x[:, :1].flatten(1) * ((1 + snr) / snr).sqrt()
        logits = -torch.cdist(seen, MAPS.flatten(1)).square() * snr / 2
        other = (x[:, None, 1:] != self.shown).flatten(2).any(dim=2)
        nothing = (x[:, 1:] == 0).flatten(1).all(dim=1)
        weights = logits.masked_fill(other & ~nothing[:, None], -torch.inf).softmax(dim=1)
        return (weights @ MAPS.flatten(1)).view(-1, 1, 2, 2)


@pytest.mark.parametrize(
    ("conditions", "entropy"),
    [
        (MAPS.mean(dim=(2, 3), keepdim=True), (4 - 2.0306) / 4),  # less that of Binomial(4, 1/2), in bits
        (MAPS[:, :, :1, :1], 3 / 4),  # tells one of four
        (MAPS, 0.0),  # tells all
        (torch.zeros(16, 1, 1, 1), 1.0),  # the same for all, as a gray image: tells nothing
    ],
)
def test_bits_fall_to_the_conditional_entropy(conditions, entropy):
    quantizer = GumbelSoftmaxQuantizer(2, 1).eval()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    scheduler = OUBridgeScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    shown = condition_map(conditions, 2)
    network = Exact(scheduler, shown).eval()

    def bits(condition):
        # the integral's error is that of an unconditional law, and the noise is averaged over 16 x 16 maps
        unet = ConditionedUNet(network, condition.repeat(16, 1, 1, 1))
        codes, rng = CODES.repeat(16, 1, 1), torch.Generator().manual_seed(0)
        return bridge_code_bits(unet, scheduler, quantizer, codes, rng, batch_size=256).mean().item()

    assert bits(shown) == pytest.approx(entropy, abs=0.04)
    assert bits(torch.zeros_like(shown)) == pytest.approx(1.0, abs=0.04)  # no condition


def test_samplers_draw_what_the_condition_says():
    """Each of the 16 conditions that tell all gives its own map."""
    scheduler = OUBridgeScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    shown = condition_map(MAPS, 2)
    unet = ConditionedUNet(Exact(scheduler, shown).eval(), shown)
    for solver in ("dpmsolver++", "ancestral"):
        drawn = sample_latents(unet, scheduler, (16, 1, 2, 2), 6, torch.Generator().manual_seed(0), solver=solver)
        assert torch.equal(drawn.sign(), MAPS)
