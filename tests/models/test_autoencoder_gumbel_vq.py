"""The autoencoder against diffusers' VQModel, torch's batch normalisation, and the chain of its parts by hand."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_bridge_vq.models import GumbelVQModel, LatentNormalizer

TINY = 1e-12  # torch's batch normalisation wants a positive eps
TYPES = ["gumbel", "ste", "ema"]
SMALL = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "num_vq_embeddings": 16,
    "sample_size": 16,
    "mid_block_add_attention": False,
}
# every other key of VQModel's away from its default
OTHER = {
    "in_channels": 1,
    "out_channels": 2,
    "block_out_channels": [4, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "act_fn": "gelu",
    "norm_num_groups": 2,
    "latent_channels": 4,
    "vq_embed_dim": 5,
    "num_vq_embeddings": 20,
    "sample_size": 8,
    "scaling_factor": 0.5,
    "force_upcast": True,
}
# this key wants 32 channels everywhere, and codes as wide as the decoder's input
SPATIAL = SMALL | {"norm_type": "spatial", "block_out_channels": [32, 32]}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(**kwargs) -> GumbelVQModel:
    return GumbelVQModel(**SMALL | kwargs)


def moved(model: GumbelVQModel) -> GumbelVQModel:
    """The model with the running statistics of a batch, so that latents lie among the codes; in eval."""
    momentum, model.normalizer.momentum = model.normalizer.momentum, 1.0
    with torch.no_grad():
        model.train().encode(images(model.config, 16))
    model.normalizer.momentum = momentum
    assert (model.normalizer.running_var < 0.5).all()  # far from its start, 1
    return model.eval()


def images(config: dict = SMALL, batch: int = 2) -> torch.Tensor:
    size = config["sample_size"]
    return torch.rand(batch, config.get("in_channels", 3), size, size) * 2 - 1


def spread_stock(config: dict) -> VQModel:
    """A stock VQModel in eval whose codes lie among the latents (untrained ones are all next to 0)."""
    stock = VQModel(**config).eval()
    with torch.no_grad():
        latents = stock.encode(images(config, 16)).latents.movedim(1, -1).flatten(0, 2)
        stock.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[: stock.quantize.n_e]])
    return stock


def stock_codes(stock: VQModel, latents: torch.Tensor) -> torch.Tensor:
    return stock.quantize(latents)[2][2].reshape(latents.shape[0], *latents.shape[2:])


def assert_same_state(model: torch.nn.Module, other: torch.nn.Module) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


# ------------------------------------------------------------------------------------------- diffusers' VQModel


def test_constructor_has_all_keys_of_vqmodel():
    stock, ours = (inspect.signature(cls.__init__).parameters for cls in (VQModel, GumbelVQModel))
    for name, parameter in stock.items():
        assert ours[name].default == parameter.default, name
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in ours.values())


@pytest.mark.parametrize("config", [SMALL, OTHER, SPATIAL])
@torch.no_grad()
def test_stock_checkpoints_load(tmp_path, config):
    stock, x = spread_stock(config), images(config)
    stock.save_pretrained(tmp_path)
    ours = GumbelVQModel.from_pretrained(tmp_path)
    assert not ours.training
    for key, value in config.items():
        assert ours.config[key] == value
    expected, latents = stock.encode(x).latents, ours.encode(x).latents
    assert torch.equal(latents, expected)
    codes = ours.encode_codes(latents)
    assert codes.unique().numel() > 3
    assert torch.equal(codes, stock_codes(stock, expected))
    assert torch.equal(ours.quantize(latents)[0], stock.quantize(expected)[0])
    # another memory format of z_q lets convolutions sum in another order
    torch.testing.assert_close(ours(x).sample, stock(x).sample, atol=1e-5, rtol=0)


def test_stock_checkpoint_becomes_an_ema_codebook(tmp_path):
    """The running counts aren't in the checkpoint: as in a fresh quantizer every code starts with a fair share, 1."""
    stock, gamma = spread_stock(SMALL), 0.9
    stock.save_pretrained(tmp_path)
    ours = GumbelVQModel.from_pretrained(tmp_path, quantizer_type="ema", ema_decay=gamma)
    e = stock.quantize.embedding.weight.detach()
    assert torch.equal(ours.quantize.embedding.weight, e) and not ours.quantize.embedding.weight.requires_grad
    z = e + 0.01 * torch.randn_like(e)  # one latent next to each code, and 2 more next to the first
    z = torch.cat([z, e[:1], e[:1]])
    nearest = (z.double()[:, None] - e.double()).square().sum(-1).argmin(1)
    total, n = gamma * e, gamma * torch.ones(16)
    for row, k in zip(z, nearest.tolist(), strict=True):
        total[k] += (1 - gamma) * row * 16 / len(z)
        n[k] += (1 - gamma) * 16 / len(z)
    ours.train().quantize(z.T[None])
    torch.testing.assert_close(ours.quantize.embedding.weight, total / n[:, None], atol=1e-5, rtol=0)


@torch.no_grad()
def test_lookup_from_codebook_is_stock(tmp_path):
    """With this key of VQModel's, decode(..., force_not_quantize=True) takes indices."""
    stock = spread_stock(SMALL | {"lookup_from_codebook": True})
    stock.save_pretrained(tmp_path)
    ours = GumbelVQModel.from_pretrained(tmp_path)
    indices = torch.randint(16, (2 * 8 * 8,))
    expected = stock.decode(indices, force_not_quantize=True, shape=(2, 8, 8, 3)).sample
    decoded = ours.decode(indices, force_not_quantize=True, shape=(2, 8, 8, 3)).sample
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=0)
    # ... and still z_q, as the class docstring says: what pipelines and training pass
    z_q = ours.decode_codes(indices.reshape(2, 8, 8))
    torch.testing.assert_close(ours.decode(z_q, force_not_quantize=True).sample, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [SMALL, OTHER, SPATIAL])
@torch.no_grad()
def test_to_vq_model_folds_the_normalizer(tmp_path, config):
    ours, x = moved(GumbelVQModel(**config)), images(config)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    latents = ours.encode(x).latents
    ours.to_vq_model().save_pretrained(tmp_path)
    stock = VQModel.from_pretrained(tmp_path)
    assert type(stock) is VQModel and not stock.training
    torch.testing.assert_close(stock.encode(x).latents, latents, atol=1e-5, rtol=1e-5)
    codes = ours.encode_codes(latents)
    assert codes.unique().numel() > 3
    assert torch.equal(stock_codes(stock, latents), codes)
    torch.testing.assert_close(stock(x).sample, ours(x).sample, atol=1e-4, rtol=0)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not ours.to_vq_model().training and ours.train().to_vq_model().training
    ours.eval()
    # and back again
    stock_again = GumbelVQModel.from_pretrained(tmp_path)
    torch.testing.assert_close(stock_again(x).sample, ours(x).sample, atol=1e-4, rtol=0)


def test_from_config_of_a_stock_model():
    stock = VQModel(**OTHER)
    ours = GumbelVQModel.from_config(stock.config)
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert set(missing) == {f"normalizer.{name}" for name in statistics} and not unexpected
    for key, value in OTHER.items():
        assert ours.config[key] == value


def test_config_is_json_of_lists():
    config = json.loads(make(quantizer_type="ste", temperature=0.5).to_json_string())
    assert config["block_out_channels"] == [8, 8] and config["down_block_types"] == ["DownEncoderBlock2D"] * 2
    assert (config["quantizer_type"], config["temperature"], config["normalize_latents"]) == ("ste", 0.5, True)
    again = GumbelVQModel.from_config(config)
    assert (again.quantize.quantizer_type, again.quantize.temperature) == ("ste", 0.5)
    assert again.config.scaling_factor == 0.18215 and list(again.config.block_out_channels) == [8, 8]
    # every setting reaches the quantizer
    q = make(temperature=0.3, commitment_weight=0.7, ema_decay=0.6, quantizer_type="ema", vq_embed_dim=5).quantize
    assert (q.temperature, q.commitment_weight, q.ema_decay, q.n_e, q.vq_embed_dim) == (0.3, 0.7, 0.6, 16, 5)


def test_unknown_attributes_raise_the_stock_error():
    with pytest.raises(AttributeError, match="'GumbelVQModel' object has no attribute 'nonsense'"):
        make().nonsense  # noqa: B018


# ------------------------------------------------------------------------------------------------- forward


@torch.no_grad()
def test_forward_is_the_chain_of_its_parts():
    model, x = moved(make()), images()
    z = model.quant_conv(model.encoder(x))
    z_e = F.batch_norm(z, model.normalizer.running_mean, model.normalizer.running_var, eps=TINY)
    e = model.quantize.embedding.weight
    distances = (z_e.movedim(1, -1)[..., None, :].double() - e.double()).square().sum(-1)  # (B, h, w, K)
    codes = distances.argmin(-1)
    z_q = torch.stack([e[k] for k in codes.flatten()]).reshape(*codes.shape, -1).movedim(-1, 1).contiguous()
    expected = model.decoder(model.post_quant_conv(z_q))

    out = model(x)
    torch.testing.assert_close(model.encode(x).latents, z_e, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.encode_codes(z_e), codes) and torch.equal(model.decode_codes(codes), z_q)
    torch.testing.assert_close(out.sample, expected, atol=1e-5, rtol=0)
    nll = (distances.min(-1).values + torch.logsumexp(-distances, -1)).mean() / 3
    assert abs(out.commit_loss.item() - 0.25 * nll.item()) < 1e-5

    sample, loss = model(x, return_dict=False)
    assert torch.equal(sample, out.sample) and torch.equal(loss, out.commit_loss)
    assert torch.equal(model.encode(x, return_dict=False)[0], model.encode(x).latents)
    unquantized = model.decode(z_q, force_not_quantize=True)
    torch.testing.assert_close(unquantized.sample, expected, atol=1e-5, rtol=0)
    assert not unquantized.commit_loss.any()
    shifted = model.decode(z_e, force_not_quantize=True).sample  # taken as it is, not quantized
    torch.testing.assert_close(shifted, model.decoder(model.post_quant_conv(z_e)), atol=1e-5, rtol=0)
    assert (shifted - expected).abs().max() > 1e-2


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_reach_the_encoder(kind):
    """All gradients of reconstruction and codebook loss, against autograd through torch's own pieces."""
    model, x = make(quantizer_type=kind, temperature=0.8), images()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    torch.manual_seed(4)
    out = model(x)
    ((out.sample - x).square().mean() + out.commit_loss).backward()
    ours = {n: p.grad for n, p in model.named_parameters()}

    model.load_state_dict(start, strict=False)  # "ema" has moved its codes
    model.zero_grad()
    torch.manual_seed(4)
    z_e = F.batch_norm(model.quant_conv(model.encoder(x)), None, None, training=True, eps=TINY)
    rows, e = z_e.movedim(1, -1).reshape(-1, 3), model.quantize.embedding.weight
    logits = -(rows[:, None] - e).square().sum(-1)
    if kind == "gumbel":
        one_hot = F.gumbel_softmax(logits, tau=0.8, hard=True)
        z_q, loss = one_hot @ e, 0.25 * F.cross_entropy(logits, one_hot.argmax(1)) / 3
    else:
        chosen = e[logits.argmax(1)]
        loss = 0.25 * F.mse_loss(rows, chosen.detach()) + (kind == "ste") * F.mse_loss(chosen, rows.detach())
        z_q = rows + (chosen - rows).detach()
    sample = model.decoder(model.post_quant_conv(z_q.reshape(2, 8, 8, 3).movedim(-1, 1)))
    ((sample - x).square().mean() + loss).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-3)
    assert ours["encoder.conv_in.weight"].abs().max() > 1e-4
    assert (ours["quantize.embedding.weight"] is None) == (kind == "ema")


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_noise_in_gumbel_training_only(kind):
    model, x = make(quantizer_type=kind), images()
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def run(seed: int) -> torch.Tensor:
        model.load_state_dict(start)
        torch.manual_seed(seed)
        return model(x).sample

    assert torch.equal(run(1), run(2)) == (kind != "gumbel")
    if kind == "gumbel":
        assert torch.equal(run(1), run(1))
    model.eval()
    first, rng = run(1), torch.get_rng_state()
    state = {n: b.clone() for n, b in model.named_buffers()}
    assert torch.equal(model(x).sample, first)
    assert torch.equal(torch.get_rng_state(), rng)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, state[name]), name


def test_bad_images():
    model = make()
    assert model.downsampling_factor == 2
    for x in (torch.zeros(2, 1, 16, 16), torch.zeros(2, 3, 15, 16), torch.zeros(2, 3, 16, 15), torch.zeros(3, 16, 16)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\) with sides divisible by 2"):
            model.encode(x)
    with pytest.raises(ValueError, match="floating point"):
        model.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="gumbel, ste or ema"):
        make(quantizer_type="lfq")
    assert GumbelVQModel(**OTHER).downsampling_factor == 4


# --------------------------------------------------------------------------------------------- the normaliser


def test_the_first_batches_weigh_equally():
    """As torch's BatchNorm with momentum=None, until a batch's share would fall below the momentum."""
    norm, peer = LatentNormalizer(3, momentum=0.2), torch.nn.BatchNorm1d(3, momentum=None, affine=False)
    batches = [torch.randn(4, 3, 7) * (i + 1) + i for i in range(6)]
    for z in batches[:5]:
        norm(z), peer(z)
    torch.testing.assert_close(norm.running_mean, peer.running_mean)
    torch.testing.assert_close(norm.running_var * 28 / 27, peer.running_var)
    norm(batches[5])
    torch.testing.assert_close(norm.running_mean, 0.8 * peer.running_mean + 0.2 * batches[5].mean((0, 2)))


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 3, 7)])
def test_normalizer_is_batch_norm_in_training(shape):
    norm = LatentNormalizer(3, momentum=0.2)
    peer = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(3, eps=TINY, momentum=0.2, affine=False)
    weight, n = torch.randn(shape), shape[0] * shape[2] * (shape[3] if len(shape) == 4 else 1)
    norm.num_batches_tracked.fill_(100)  # past the first batches, which weigh equally
    mean, var = torch.zeros(3), torch.ones(3)
    for _ in range(3):
        z = torch.randn(shape) * torch.tensor([0.1, 1.0, 7.0]).reshape(1, 3, *[1] * (len(shape) - 2)) + 2
        results = []
        for module in (norm, peer):
            leaf = z.clone().requires_grad_()
            out = module(leaf)
            results.append((out, *torch.autograd.grad((out * weight + out**3).sum(), leaf)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        channels = z.double().movedim(1, 0).flatten(1)
        mean, var = 0.8 * mean + 0.2 * channels.mean(1), 0.8 * var + 0.2 * channels.var(1, correction=0)
        torch.testing.assert_close(norm.running_mean, peer.running_mean)
    torch.testing.assert_close(norm.running_mean.double(), mean.double(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), var.double(), atol=1e-6, rtol=1e-6)
    # torch keeps the unbiased variance
    started = 0.8**3
    torch.testing.assert_close((norm.running_var - started) * n / (n - 1) + started, peer.running_var)

    norm.eval()
    expected = F.batch_norm(z, norm.running_mean, norm.running_var, eps=TINY)
    torch.testing.assert_close(norm(z), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_mean.double(), mean.double(), atol=1e-6, rtol=1e-6)  # eval keeps them


def test_frozen_normalizer_uses_and_keeps_the_running_statistics():
    norm = LatentNormalizer(2)
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    z = torch.randn(3, 2, 4, 4)
    norm.freeze()
    assert norm.training
    expected = torch.stack([(z[:, 0] - 1) / 2, (z[:, 1] + 2) / 0.5], 1)
    torch.testing.assert_close(norm(z), expected)
    assert norm.running_mean.tolist() == [1.0, -2.0] and norm.running_var.tolist() == [4.0, 0.25]
    norm.freeze(False)
    torch.testing.assert_close(norm(z), F.batch_norm(z, None, None, training=True, eps=TINY), atol=1e-5, rtol=1e-5)
    assert norm.running_mean.tolist() != [1.0, -2.0]


def test_normalizer_survives_a_constant_channel():
    z = torch.randn(3, 2, 4, 4)
    z[:, 1] = 5.0
    z.requires_grad_()
    out = LatentNormalizer(2)(z)
    out.square().sum().backward()
    assert not out[:, 1].any() and z.grad.isfinite().all()


def test_half_precision_latents_have_float32_statistics():
    z = (20 + torch.randn(4, 3, 16, 16)).bfloat16()
    norm = LatentNormalizer(3, momentum=1.0)
    out, exact = norm(z), F.batch_norm(z.double(), None, None, training=True, eps=TINY)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=2**-8)  # one rounding, at the end
    channels = z.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), channels.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm.running_var.double(), channels.var(1, correction=0), atol=1e-5, rtol=0)


def test_without_normalisation_latents_are_the_encoders(tmp_path):
    model, x = make(normalize_latents=False), images()
    model.save_pretrained(tmp_path)
    for m in (model, GumbelVQModel.from_pretrained(tmp_path).train()):
        m.train()
        assert torch.equal(m.encode(x).latents, m.quant_conv(m.encoder(x)))
        assert not m.normalizer.running_mean.any() and (m.normalizer.running_var == 1).all()


# ------------------------------------------------------------------------------- saving, precision, averaging


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("dtype", "variant"), [(torch.float32, None), (torch.float16, "fp16"), (torch.bfloat16, None)]
)
@torch.no_grad()
def test_safetensors_round_trip(tmp_path, kind, dtype, variant):
    model = moved(make(quantizer_type=kind))
    if kind == "ema":
        model.quantize.train()(torch.randn(1, 3, 200))  # running counts and sums away from their start
    model = model.eval().to(dtype)
    model.save_pretrained(tmp_path, variant=variant)
    name = "diffusion_pytorch_model" + (f".{variant}" if variant else "") + ".safetensors"
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", name}
    loaded = GumbelVQModel.from_pretrained(tmp_path, variant=variant, torch_dtype=dtype)
    assert loaded.dtype == dtype and loaded.quantize.quantizer_type == kind
    assert_same_state(loaded, model)
    assert all(b.device.type == "cpu" for b in loaded.buffers())
    x = images().to(dtype)
    assert torch.equal(loaded(x).sample, model(x).sample) and loaded(x).sample.dtype == dtype
    assert "quantize.code_counts" not in model.state_dict()  # an epoch's counts are nobody's weights


@torch.no_grad()
def test_shards(tmp_path):
    model = moved(make())
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    loaded = GumbelVQModel.from_pretrained(tmp_path)
    assert_same_state(loaded, model)
    assert not loaded.normalizer.frozen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_near_float32(dtype):
    model, x = moved(make()), images()
    half = make().eval().to(dtype)
    half.load_state_dict(model.state_dict())
    latents = half.encode(x.to(dtype)).latents
    assert latents.dtype == dtype
    gap = (latents.float() - model.encode(x).latents).square().mean().sqrt()
    assert 0 < gap < 0.1  # latents with channels of standard deviations up to 7, 8 bits of mantissa
    assert torch.isfinite(half(x.to(dtype)).sample).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("storage", [None, torch.float8_e4m3fn])
def test_a_bfloat16_model_trains(kind, storage):
    """As diffusers' common tests of layerwise casting do it: model.to(compute dtype), autocast, one backward pass."""
    model, x = make(quantizer_type=kind).to(torch.bfloat16), images().bfloat16()
    if storage is not None:
        model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        z = model.quant_conv(model.encoder(x)).detach().double().movedim(1, 0).flatten(1)
        out = model.train()(x)
        loss = F.mse_loss(out.sample, x) + out.commit_loss
    loss.backward()
    torch.testing.assert_close(model.normalizer.running_mean.double(), z.mean(1), atol=1e-4, rtol=0.02)
    torch.testing.assert_close(model.normalizer.running_var.double(), z.var(1), atol=1e-4, rtol=0.03)
    gradient = model.encoder.conv_in.weight.grad.float()
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    assert torch.isfinite(model.quantize.embedding.weight).all()


@torch.no_grad()
def test_layerwise_casting_spares_codebook_and_statistics():
    assert GumbelVQModel._skip_layerwise_casting_patterns == ["quantize"]
    assert GumbelVQModel._supports_group_offloading is False
    model, x, expected = moved(make()), images(), make().eval()
    expected.load_state_dict(model.state_dict())
    for module in expected.modules():  # what storing in eight bits does to the weights
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            for p in module.parameters():
                p.data = p.data.to(torch.float8_e4m3fn).float()
    original = model(x).sample
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.encoder.conv_in.weight.dtype == torch.float8_e4m3fn
    assert model.quantize.embedding.weight.dtype == torch.float32
    assert model.normalizer.running_mean.dtype == torch.float32
    torch.testing.assert_close(model(x).sample, expected(x).sample)
    assert (expected(x).sample - original).abs().max() > 1e-3


@pytest.mark.parametrize("kind", TYPES)
def test_averaged_model_keeps_codebook_and_statistics(kind):
    """`AveragedModel(use_buffers=True)`: the first update copies, later ones are a running mean, of buffers too."""
    model = make(quantizer_type=kind)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    expected = None
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
            model(images())  # moves the running statistics, and the codes of "ema"
        averaged.update_parameters(model)
        state = {k: v.double().clone() for k, v in model.state_dict().items()}
        expected = state if expected is None else {k: 0.9 * v + 0.1 * state[k] for k, v in expected.items()}
    result = averaged.module.state_dict()
    assert "normalizer.running_var" in result and ("quantize.ema_count" in result) == (kind == "ema")
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name].double(), tensor, atol=1e-6, rtol=1e-5)
    assert not torch.equal(averaged.module.normalizer.running_mean, model.normalizer.running_mean)
