"""`denoise` against the U-Net called by hand on padded, scaled inputs."""

import math

import pytest
import tiny_models
import torch
from diffusers import EulerDiscreteScheduler, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler
from diffusion_bridge_vq.models import check_channels, denoise
from diffusion_bridge_vq.models.denoiser import call_network

THETA, ETA, Z_STAR = 0.5, 2.0, [0.5, -1.0, 2.0]


@pytest.fixture(scope="module")
def scheduler() -> OUBridgeScheduler:
    return OUBridgeScheduler(num_train_timesteps=50, theta=THETA, eta=ETA, z_star=Z_STAR)


def make_unet(levels: int = 3, classes: int | None = None, **changes) -> UNet2DModel:
    return tiny_models.make_unet(levels, num_class_embeds=classes, **changes).eval()


def unit_variance(scheduler: OUBridgeScheduler, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(z - z*) / m_t with m_t^2 = abar + s^2 (1 - abar), from the betas."""
    out, s2 = torch.empty_like(z), ETA**2 / (2 * THETA)
    for b, i in enumerate(t.expand(len(z)).tolist()):
        abar = math.prod(1 - beta for beta in scheduler.betas.double().tolist()[: i + 1])
        for c, z_star in enumerate(Z_STAR):
            out[b, c] = (z[b, c] - z_star) / math.sqrt(abar + s2 * (1 - abar))
    return out


TIMES = [torch.tensor(20), torch.tensor([3, 49])]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(
    ("size", "padded"),
    [((21, 21), (24, 24)), ((7, 7), (8, 8)), ((7, 21), (8, 24)), ((8, 12), (8, 12)), ((1, 5), (4, 8))],
)
@torch.no_grad()
def test_odd_grids_are_padded_with_zeros_and_cropped(scheduler, size, padded, t):
    unet, z = make_unet(), torch.randn(2, 3, *size)
    x = torch.zeros(2, 3, *padded)
    x[:, :, : size[0], : size[1]] = unit_variance(scheduler, z, t)
    expected = unet(x, t).sample[:, :, : size[0], : size[1]]
    torch.testing.assert_close(denoise(unet, scheduler, z, t), expected, atol=1e-5, rtol=1e-5)
    if size == (21, 21):  # what the padding is for
        with pytest.raises(RuntimeError):
            unet(z, t)


@torch.no_grad()
def test_padding_follows_the_depth(scheduler):
    """One level halves nothing: 7 x 7 goes in as it is."""
    unet, z = make_unet(levels=1), torch.randn(2, 3, 7, 7)
    seen = []
    unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    expected = unet(unit_variance(scheduler, z, TIMES[0]), TIMES[0]).sample
    torch.testing.assert_close(denoise(unet, scheduler, z, TIMES[0]), expected, atol=1e-5, rtol=1e-5)
    assert seen == [z.shape, z.shape]


class Sequence(nn.Module):
    """A plain 1-D network without config or classes, that returns a tensor."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + x.mean(dim=2, keepdim=True) + t.reshape(-1, 1, 1)  # the mean would feel a padding


class Configured(Sequence, ConfigMixin):
    """The same with a config that knows of no levels, like diffusers' transformers."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, width: int = 3):
        super().__init__()


@pytest.mark.parametrize("cls", [Sequence, Configured])
@pytest.mark.parametrize("t", TIMES)
@torch.no_grad()
def test_sequences(scheduler, cls, t):
    network, z = cls(), torch.randn(2, 3, 7)
    expected = network(unit_variance(scheduler, z, t), t)
    torch.testing.assert_close(denoise(network, scheduler, z, t), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_stock_schedulers_scale_their_own_way():
    euler = EulerDiscreteScheduler(num_train_timesteps=50)
    euler.set_timesteps(5)
    unet, z, t = make_unet(), torch.randn(2, 3, 8, 8), euler.timesteps[2]
    euler.scale_model_input(z, t)  # finds its place in the schedule
    sigma = float(euler.sigmas[2])
    expected = unet(z / math.sqrt(sigma**2 + 1), t).sample
    torch.testing.assert_close(denoise(unet, euler, z, t), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("scale", [0.0, 0.3, 2.5])
@torch.no_grad()
def test_guidance_is_the_formula_of_two_calls(scheduler, t, scale):
    unet, z, labels = make_unet(classes=5), torch.randn(2, 3, 7, 7), torch.tensor([1, 3])
    with torch.no_grad():
        unet.class_embedding.weight.mul_(5)  # so that classes matter
    x = torch.zeros(2, 3, 8, 8)
    x[:, :, :7, :7] = unit_variance(scheduler, z, t)
    conditional = unet(x, t, class_labels=labels).sample[..., :7, :7]
    null = unet(x, t, class_labels=torch.tensor([4, 4])).sample[..., :7, :7]
    assert (conditional - null).abs().max() > 0.05
    expected = (1 - scale) * null + scale * conditional
    torch.testing.assert_close(denoise(unet, scheduler, z, t, labels, scale), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", TIMES)
@torch.no_grad()
def test_without_guidance_it_is_one_conditional_call(scheduler, t):
    unet, z, labels = make_unet(classes=5), torch.randn(2, 3, 8, 8), torch.tensor([1, 3])
    seen = []
    expected = unet(unit_variance(scheduler, z, t), t, class_labels=labels).sample
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(len(args[0])), with_kwargs=True)
    torch.testing.assert_close(denoise(unet, scheduler, z, t, labels), expected, atol=1e-5, rtol=1e-5)
    assert seen == [2]
    other = unet(unit_variance(scheduler, z, t), t, class_labels=labels.flip(0)).sample
    assert (other - expected).abs().max() > 1e-3


@torch.no_grad()
def test_the_network_is_called_on_what_is_scaled_already(scheduler):
    """`denoise` without its scaling."""
    unet, z, t, labels = make_unet(classes=5), torch.randn(2, 3, 7, 7), TIMES[1], torch.tensor([1, 3])
    x = unit_variance(scheduler, z, t)
    expected = denoise(unet, scheduler, z, t, labels, 2.5)
    torch.testing.assert_close(call_network(unet, x, t, labels, 2.5), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_stays_half(scheduler, dtype):
    unet, z = make_unet(), torch.randn(2, 3, 7, 7)
    expected = denoise(unet, scheduler, z, TIMES[1])
    half = denoise(unet.to(dtype), scheduler, z.to(dtype), TIMES[1])
    assert half.dtype == dtype
    assert (half.float() - expected).abs().max() < 0.1 < expected.abs().max()


def test_gradients_flow_to_sample_and_weights(scheduler):
    """Training goes through it: the gradient of the crop is that of the padded call."""
    unet, z = make_unet(), torch.randn(2, 3, 7, 7)
    weight, results = torch.randn(2, 3, 7, 7), []
    for by_hand in (False, True):
        leaf = z.clone().requires_grad_()
        if by_hand:
            x = torch.cat([unit_variance_graph(scheduler, leaf), torch.zeros(2, 3, 1, 7)], dim=2)
            output = unet(torch.cat([x, torch.zeros(2, 3, 8, 1)], dim=3), TIMES[0]).sample[..., :7, :7]
        else:
            output = denoise(unet, scheduler, leaf, TIMES[0])
        results.append(torch.autograd.grad((output * weight).sum(), (leaf, unet.conv_in.weight)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def unit_variance_graph(scheduler: OUBridgeScheduler, z: torch.Tensor) -> torch.Tensor:
    """As `unit_variance` at timestep 20, differentiable: an affine map of each channel."""
    shift = unit_variance(scheduler, torch.zeros_like(z), TIMES[0])
    slope = unit_variance(scheduler, torch.ones_like(z), TIMES[0]) - shift
    return shift + slope * z


def test_check_channels():
    vqvae = GumbelVQModel(
        block_out_channels=[8], norm_num_groups=4, latent_channels=3, vq_embed_dim=4, mid_block_add_attention=False
    )
    kwargs = {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    kwargs |= {"norm_num_groups": 4, "layers_per_block": 1}
    check_channels(UNet2DModel(in_channels=4, out_channels=4, **kwargs), vqvae)
    for channels in ((3, 3), (4, 8), (8, 4)):
        with pytest.raises(ValueError, match="in_channels=out_channels=4"):
            check_channels(UNet2DModel(in_channels=channels[0], out_channels=channels[1], **kwargs), vqvae)
    vqvae.register_to_config(vq_embed_dim=None)  # then codes are as wide as the latents
    check_channels(UNet2DModel(in_channels=3, out_channels=3, **kwargs), vqvae)
