"""The autoencoder saved, in half precision, cast layer by layer, and averaged over training."""

import pytest
import torch
import torch.nn.functional as F
from reference_quantizer import TYPES
from tiny_models import make_autoencoder, make_images, with_running_statistics
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_bridge_vq.models import QUANTIZERS, GumbelVQModel


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("dtype", "saving"),
    [
        (torch.float32, {}),
        (torch.float32, {"max_shard_size": "8KB"}),
        (torch.float16, {"variant": "fp16"}),
        (torch.bfloat16, {}),
    ],
    ids=["float32", "shards", "fp16", "bfloat16"],
)
@torch.no_grad()
def test_safetensors_round_trip(tmp_path, kind, dtype, saving):
    model = with_running_statistics(make_autoencoder(quantizer_type=kind))
    if kind == "ema":
        model.quantize.train()(torch.randn(1, 3, 200))  # running counts away from their start
    model = model.eval().to(dtype)
    model.save_pretrained(tmp_path, **saving)
    names = {path.name for path in tmp_path.iterdir()}
    if "max_shard_size" in saving:
        assert "diffusion_pytorch_model.safetensors.index.json" in names and len(names) > 3
    else:
        tag = ".fp16" if saving else ""
        assert names == {"config.json", f"diffusion_pytorch_model{tag}.safetensors"}
    loaded = GumbelVQModel.from_pretrained(tmp_path, variant=saving.get("variant"), torch_dtype=dtype)
    assert loaded.dtype == dtype and type(loaded.quantize) is QUANTIZERS[kind]
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys() and "quantize.code_counts" not in state  # an epoch's counts: no weights
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    assert all(b.device.type == "cpu" for b in loaded.buffers())
    x = make_images().to(dtype)
    assert torch.equal(loaded(x).sample, model(x).sample) and loaded(x).sample.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_near_float32(dtype):
    model, x = with_running_statistics(make_autoencoder()), make_images()
    half = make_autoencoder().eval().to(dtype)
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
    model, x = make_autoencoder(quantizer_type=kind).to(torch.bfloat16), make_images().bfloat16()
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
    model, x, expected = with_running_statistics(make_autoencoder()), make_images(), make_autoencoder().eval()
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
    model = make_autoencoder(quantizer_type=kind)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    expected = None
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
            model(make_images())  # moves the running statistics, and the codes of "ema"
        averaged.update_parameters(model)
        state = {k: v.double().clone() for k, v in model.state_dict().items()}
        expected = state if expected is None else {k: 0.9 * v + 0.1 * state[k] for k, v in expected.items()}
    result = averaged.module.state_dict()
    assert "normalizer.running_var" in result and ("quantize.ema_count" in result) == (kind == "ema")
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name].double(), tensor, atol=1e-6, rtol=1e-5)
    assert not torch.equal(averaged.module.normalizer.running_mean, model.normalizer.running_mean)
