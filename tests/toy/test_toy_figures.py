"""The toy's figures: drawn from what was saved, and left out without matplotlib."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from diffusion_bridge_vq.toy.figures import plot_toy
from diffusion_bridge_vq.toy.walks import toy_codebook

TOY = {
    "true_codebook": toy_codebook(),
    "forward": torch.randn(51, 2, 5),
    "reverse": torch.randn(51, 2, 5),
    "initial_codebook": torch.randn(8, 2),
    "codebook_gamma": torch.randn(8, 2),
    "codebook_none": torch.randn(8, 2),
    "completions": torch.randn(3, 2, 5),
}


def test_toy_figures_are_drawn_from_the_saved_results(tmp_path):
    pytest.importorskip("matplotlib")
    save_file({k: v.contiguous() for k, v in TOY.items()}, tmp_path / "toy.safetensors")
    paths = plot_toy(tmp_path)
    assert [p.name for p in paths] == ["toy_trajectories.png", "toy_codebook.png", "toy_inpainting.png"]
    before = [p.read_bytes() for p in paths]
    changed = TOY | {"reverse": torch.zeros(51, 2, 5)}
    save_file({k: v.contiguous() for k, v in changed.items()}, tmp_path / "toy.safetensors")
    same = [p.read_bytes() == old for p, old in zip(plot_toy(tmp_path), before, strict=True)]
    assert same == [False, True, True]


def test_without_matplotlib_there_is_a_message_and_no_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save_file({k: v.contiguous() for k, v in TOY.items()}, tmp_path / "toy.safetensors")
    assert plot_toy(tmp_path) == []
    assert "[plots]" in capsys.readouterr().out
