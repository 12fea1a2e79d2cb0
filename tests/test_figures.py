"""Figures from saved results: what they show."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusion_bridge_vq.figures import (
    chain_sheet,
    inpainting_sheet,
    plot_kl_maps,
    plot_metrics,
    plot_runs,
    sample_sheets,
)
from diffusion_bridge_vq.grids import image_grid

GRAY = Image.new("L", (8, 8))


def tile(picture: Image.Image, row: int, column: int, side: int = 68) -> np.ndarray:
    """The 64 pixels inside a tile's border."""
    left, top = column * side + 2, row * side + 2
    return np.asarray(picture.crop((left, top, left + 64, top + 64)))


def test_grid_places_images_row_by_row_and_enlarges_them():
    images = [Image.fromarray(np.full((16, 16), 40 * i, np.uint8)) for i in range(5)]
    grid = image_grid(images, columns=3)
    assert grid.size == (3 * 68, 2 * 68)
    for i in range(5):
        assert (tile(grid, i // 3, i % 3) == 40 * i).all()
    assert (tile(grid, 1, 2) == 0).all()  # filled up
    assert image_grid([Image.new("RGB", (100, 100))], columns=1).size == (104, 104)  # never made smaller


def test_inpainting_sheet_has_a_row_per_image(tmp_path):
    saved = {
        "masked": torch.tensor([0.0, 0.2]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8),
        "completions": torch.tensor([[0.4, 0.6, 0.8], [0.6, 0.8, 0.4]]).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 8, 8),
        "reconstructions": torch.ones(2, 1, 8, 8),
    }
    save_file({k: v.contiguous() for k, v in saved.items()}, tmp_path / "inpainting.safetensors")
    picture = Image.open(inpainting_sheet(tmp_path))
    values = [[int(tile(picture, row, column).mean()) for column in range(5)] for row in range(2)]
    assert values == [[0, 102, 153, 204, 255], [51, 153, 204, 102, 255]]


def test_chain_sheet_has_a_row_per_image_and_a_column_per_step(tmp_path):
    chain = torch.tensor([[0.0, 0.2], [0.4, 0.6], [0.8, 1.0]])[..., None, None, None].expand(3, 2, 1, 8, 8)
    save_file({"chain": chain.contiguous()}, tmp_path / "chain.safetensors")
    picture = Image.open(chain_sheet(tmp_path))
    values = [[int(tile(picture, row, column).mean()) for column in range(3)] for row in range(2)]
    assert values == [[0, 102, 204], [51, 153, 255]]


def test_runs_side_by_side_show_the_last_grid_of_each(tmp_path):
    folders = {name: tmp_path / name for name in ("paper", "stable")}
    for shade, folder in zip((60, 200), folders.values(), strict=True):
        folder.mkdir()
        lines = [{"step": i, "train/latent_rms": 1 / i, "train/batch_perplexity": i} for i in (1, 2)]
        lines.append({"step": 2, "validation/prior": 1.0})  # lines of other kinds
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for step, value in ((100, 0), (200, shade)):
            Image.fromarray(np.full((32, 32), value, np.uint8)).save(folder / f"samples-{step:06d}.png")
    picture = np.asarray(Image.open(plot_runs(folders, tmp_path / "runs.png")).convert("L"))
    height, width = picture.shape
    for column, shade in ((5, 60), (7, 200)):  # centers of the last two of four panels
        assert abs(int(picture[height // 2, column * width // 8]) - shade) <= 1


def test_a_run_without_metrics_has_no_curves(tmp_path):
    """It raised a ValueError of matplotlib, after training."""
    assert plot_metrics(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{}\n12\n{"step": 3}\n{"step": "x", "loss/prior": 1}\n\x00')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(f'\n{{"step": {10**400}, "loss/prior": 1}}\n{{"step": 4, "loss/prior": {10**400}}}')
    assert plot_metrics(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_runs_side_by_side_need_metrics_and_samples(tmp_path):
    with pytest.raises(ValueError, match="name at least one run"):
        plot_runs({}, tmp_path / "runs.png")
    with pytest.raises(ValueError, match=r"must have metrics.jsonl and samples-STEP.png"):
        plot_runs({"one": tmp_path}, tmp_path / "runs.png")


@pytest.mark.parametrize(
    ("images", "options", "error", "words"),
    [
        ([], {"columns": 1}, ValueError, "at least one image"),
        ([GRAY], {"columns": 0}, ValueError, "`columns` must be a whole number in 1..10000, got 0"),
        ([GRAY], {"columns": 1.5}, ValueError, "got 1.5"),
        ([GRAY], {"columns": 1, "tile_size": 0}, ValueError, "`tile_size`"),
        ([np.zeros((8, 8))], {"columns": 1}, TypeError, "must be PIL images, got ndarray"),
        ([GRAY, Image.new("RGB", (8, 8))], {"columns": 1}, ValueError, "got 8x8 L, 8x8 RGB"),
        ([GRAY, Image.new("L", (8, 4))], {"columns": 1}, ValueError, "got 8x4 L, 8x8 L"),
    ],
)
def test_what_makes_no_grid(images, options, error, words):
    with pytest.raises(error, match=words):
        image_grid(images, **options)


@pytest.mark.parametrize("sheet", [chain_sheet, inpainting_sheet])
def test_sheets_name_the_file_that_is_missing_or_damaged(sheet, tmp_path):
    name = {chain_sheet: "chain", inpainting_sheet: "inpainting"}[sheet]
    with pytest.raises(ValueError, match=rf"There is no file .*{name}.safetensors"):
        sheet(tmp_path)
    (tmp_path / f"{name}.safetensors").write_bytes(b"what")
    with pytest.raises(ValueError, match=rf"{name}.safetensors is damaged"):
        sheet(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"must have a tensor .* got other"):
        sheet(tmp_path)


def test_a_sheet_of_an_empty_chain(tmp_path):
    save_file({"chain": torch.ones(0, 1, 1, 8, 8)}, tmp_path / "chain.safetensors")
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(0, 1, 1, 8, 8\)"):
        chain_sheet(tmp_path)


@pytest.mark.parametrize("images", [torch.ones(2, 1, 8, 8), torch.ones(0, 1, 8, 8, dtype=torch.uint8)])
def test_samples_that_make_no_sheet(images, tmp_path):
    with pytest.raises(ValueError, match=r"Samples of bridge must be uint8 \(n, C, H, W\)"):
        sample_sheets({"bridge": images}, tmp_path)


@pytest.mark.parametrize("values", [torch.ones(3), torch.full((2, 2), torch.nan), torch.ones(0, 2)])
def test_maps_that_make_no_figure(values, tmp_path):
    with pytest.raises(ValueError, match=r"The map of bridge must be \(h, w\) with finite values"):
        plot_kl_maps({"bridge": values}, {}, tmp_path)
