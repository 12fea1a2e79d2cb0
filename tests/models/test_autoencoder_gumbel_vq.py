"""
The autoencoder against diffusers' VQModel and the chain of its parts by hand. Its normalizer is in
test_latent_normalizer.py, files and types are in test_autoencoder_saved_and_cast.py.
"""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import VQModel
from reference_quantizer import TYPES
from tiny_models import autoencoder_settings, make_autoencoder, make_images, with_running_statistics

from diffusion_bridge_vq.models import EMAQuantizer, GumbelVQModel

TINY = 1e-12  # torch's batch normalization needs eps > 0
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
SMALL = autoencoder_settings(sample_size=16)
# this key wants 32 channels everywhere, and codes as wide as the decoder's input
SPATIAL = SMALL | {"norm_type": "spatial", "block_out_channels": [32, 32]}


def images_for(config: dict, batch_size: int = 2) -> torch.Tensor:
    return make_images(batch_size, config["sample_size"], config.get("in_channels", 3))


def spread_stock(config: dict) -> VQModel:
    """A stock VQModel in eval whose codes lie among the latents (untrained ones are all next to 0)."""
    stock = VQModel(**config).eval()
    with torch.no_grad():
        latents = stock.encode(images_for(config, 16)).latents.movedim(1, -1).flatten(0, 2)
        stock.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[: stock.quantize.n_e]])
    return stock


def stock_codes(stock: VQModel, latents: torch.Tensor) -> torch.Tensor:
    return stock.quantize(latents)[2][2].reshape(latents.shape[0], *latents.shape[2:])


# ------------------------------------------------------------------------------------------- diffusers' VQModel


def test_constructor_has_all_keys_of_vqmodel():
    stock, ours = (inspect.signature(cls.__init__).parameters for cls in (VQModel, GumbelVQModel))
    for name, parameter in stock.items():
        assert ours[name].default == parameter.default, name
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in ours.values())


@pytest.mark.parametrize("config", [SMALL, OTHER, SPATIAL])
@torch.no_grad()
def test_stock_checkpoints_load(tmp_path, config):
    stock, x = spread_stock(config), images_for(config)
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
    stock = spread_stock(SMALL)
    stock.save_pretrained(tmp_path)
    q = GumbelVQModel.from_pretrained(tmp_path, quantizer_type="ema", ema_decay=0.9).quantize
    assert torch.equal(q.embedding.weight, stock.quantize.embedding.weight) and not q.embedding.weight.requires_grad
    assert torch.equal(q.ema_count, torch.ones(16)) and (type(q), q.ema_decay) == (EMAQuantizer, 0.9)


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
    ours, x = with_running_statistics(GumbelVQModel(**config)), images_for(config)
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


def test_settings_reach_the_quantizer_through_json():
    settings = {"temperature": 0.3, "commitment_weight": 0.7, "ema_decay": 0.6}
    saved = make_autoencoder(**settings, quantizer_type="ema", vq_embed_dim=5).to_json_string()
    model = GumbelVQModel.from_config(json.loads(saved))
    assert type(model.quantize) is EMAQuantizer
    assert {name: getattr(model.quantize, name) for name in settings} == settings
    assert (model.quantize.n_e, model.quantize.vq_embed_dim) == (16, 5)


# ------------------------------------------------------------------------------------------------- forward


@torch.no_grad()
def test_forward_is_the_chain_of_its_parts():
    model, x = with_running_statistics(make_autoencoder()), make_images()
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
    model, x = make_autoencoder(quantizer_type=kind, temperature=0.8), make_images()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    torch.manual_seed(4)
    out = model(x)
    ((out.sample - x).square().mean() + out.commit_loss).backward()
    ours = {n: p.grad for n, p in model.named_parameters()}

    model.load_state_dict(start, strict=False)  # "ema" has moved its codes
    model.zero_grad()
    torch.manual_seed(4)
    torch.manual_seed(int(torch.randint(2**63 - 1, ())))  # that of the quantizer's noise
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


def test_without_normalization_latents_are_the_encoders(tmp_path):
    model, x = make_autoencoder(normalize_latents=False), make_images()
    model.save_pretrained(tmp_path)
    for m in (model, GumbelVQModel.from_pretrained(tmp_path).train()):
        m.train()
        assert torch.equal(m.encode(x).latents, m.quant_conv(m.encoder(x)))
        assert not m.normalizer.running_mean.any() and (m.normalizer.running_var == 1).all()


def test_bad_images():
    model = make_autoencoder()
    assert model.downsampling_factor == 2
    for x in (torch.zeros(2, 1, 16, 16), torch.zeros(2, 3, 15, 16), torch.zeros(2, 3, 16, 15), torch.zeros(3, 16, 16)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\) with sides divisible by 2"):
            model.encode(x)
    with pytest.raises(ValueError, match="floating point"):
        model.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one of gumbel, ste, ema, got 'lfq'"):
        make_autoencoder(quantizer_type="lfq")
    assert GumbelVQModel(**OTHER).downsampling_factor == 4
