"""benchmarks/widen_autoencoder.py: a wider network is the same function, and more codes are nearer to the latents."""

import pytest
import torch
from tiny_models import make_autoencoder

from diffusion_bridge_vq import GumbelVQModel


@pytest.fixture
def script(scripts):
    return scripts("widen_autoencoder")


def test_folders_that_are_refused(script, monkeypatch, tmp_path, capsys):
    """The trained autoencoder was overwritten where both folders were the same."""
    make_autoencoder().save_pretrained(tmp_path / "run" / "vqvae")
    before = (tmp_path / "run" / "vqvae" / "config.json").read_text()
    for run, output, message in (
        ("run", "run", "holds a trained model already"),
        ("none", "wide", "no autoencoder in"),
    ):
        monkeypatch.setattr(
            "sys.argv", ["widen.py", str(tmp_path / run), str(tmp_path / output), "--dataset", "digits"]
        )
        with pytest.raises(SystemExit):
            script.main()
        assert message in capsys.readouterr().err
    assert (tmp_path / "run" / "vqvae" / "config.json").read_text() == before and not (tmp_path / "wide").exists()


def test_attention_is_refused(script):
    model = make_autoencoder(down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"])
    with pytest.raises(ValueError, match="has attention"):
        script.widen(model, noise=0.0)


def test_a_wider_autoencoder_is_the_same_function(script):
    torch.manual_seed(0)
    model = GumbelVQModel(
        in_channels=1,
        out_channels=1,
        sample_size=8,
        block_out_channels=[8, 16, 16],  # one level with a shortcut in the old network, one without
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=4,
        num_vq_embeddings=8,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    images = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        latents = model.encode(images).latents
        wide = script.widen(model, noise=0.0)
        assert wide.config.block_out_channels == [8, 16, 32]
        torch.testing.assert_close(wide.encode(images).latents, latents, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(wide(images).sample, model(images).sample, atol=1e-5, rtol=1e-4)
        noisy = script.widen(model, noise=0.05)
        assert not torch.equal(noisy.encode(images).latents, wide.encode(images).latents)

        more = script.with_codebook(wide, 32, latents)
        torch.testing.assert_close(more.encode(images).latents, latents, atol=1e-5, rtol=1e-4)
        error = [(m.quantize(latents)[0] - latents).square().mean() for m in (model, more)]
        assert error[1] < 0.5 * error[0]
