"""benchmarks/study_alignment.py: its two terms against what they should be, and the study with tiny networks."""

import sys

import pytest
import torch

from benchmarks import study_alignment

pytestmark = pytest.mark.usefixtures("tiny")


def test_alignment_compares_the_codes_with_the_features_of_their_positions(data, monkeypatch):
    """Latents on codes that are far apart are assigned to them alone."""
    row = study_alignment.Aligned(data)
    vqvae, images = row.prior.objective.vqvae, data.train.images[:2]
    codebook = 9 * torch.randn(16, 3)
    monkeypatch.setattr(vqvae.quantize, "float_codebook", lambda: codebook)
    codes = torch.randint(16, (2, 4, 4))
    row._latents_seen = codebook[codes].permute(0, 3, 1, 2).requires_grad_()
    found = row.prior.projection(codebook[codes].permute(0, 3, 1, 2))
    wanted = row._features._features(images.float() / 127.5 - 1)[row._level]
    assert found.shape == wanted.shape == (2, 40, 4, 4)
    loss = row._alignment(images)
    cosine = (found / found.norm(dim=1, keepdim=True) * wanted / wanted.norm(dim=1, keepdim=True)).sum(1)
    assert torch.allclose(loss, 1 - cosine.mean(), atol=1e-5)
    row._latents_seen = torch.randn(2, 3, 4, 4, requires_grad=True)
    row._alignment(images).backward()
    assert row._latents_seen.grad.abs().max() > 0


def test_images_are_moved_as_their_latents_are(data, monkeypatch):
    row = study_alignment.Equivariant(data)
    latents = torch.randn(2, 3, 4, 4)
    images = latents.repeat_interleave(4, 2).repeat_interleave(4, 3)
    for quarters in range(4):
        row._turn = (quarters, 1.0)
        assert torch.equal(row._moved(images)[..., ::4, ::4], row._moved(latents))
        row._turn = (quarters, 0.5)
        assert [row._moved(x).shape[-1] for x in (images, latents)] == [8, 2]
    seen = []
    objective = row.prior.objective.train()
    monkeypatch.setattr(
        type(objective.reconstruction), "forward", lambda self, real, made: seen.append((real, made.shape)) or {}
    )
    batch, labels = data.train.images[:2], data.train.labels[:2]
    for _ in range(20):
        objective(batch.float() / 127.5 - 1, labels)
    assert {shape[-1] for _, shape in seen} == {8, 12, 16} and all(real.shape == shape for real, shape in seen)
    objective.set_step(999)  # the prior has joined
    seen.clear()
    objective(batch.float() / 127.5 - 1, labels)
    (real, _), *_ = seen
    assert torch.equal(real[0], batch[0].float() / 127.5 - 1)


def test_the_study_of_alignment_continues_and_refuses_other_settings(tiny, tmp_path, monkeypatch, capsys):
    def study(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["study", "--num-images", "60", "--output-dir", str(tmp_path), *options])
        study_alignment.main()

    study("--steps", "4")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(study_alignment.ARMS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    study("--steps", "4")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    with pytest.raises(SystemExit, match="2"):
        study("--steps", "5")
    assert "'steps': 4" in capsys.readouterr().err
    damaged = sorted(before)[0]
    for content in ("{", "[]"):
        damaged.write_text(content)
        with pytest.raises(SystemExit, match="2"):
            study("--steps", "4")
        assert f"{damaged} is damaged: remove it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        study("--data", "cifar10")
    assert "needs --dataset" in capsys.readouterr().err
