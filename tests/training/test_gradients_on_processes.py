"""Gradients and statistics of two real processes (gloo, CPU) are those of one process with both batches."""

import gradient_work
import pytest
import torch
from warm_processes import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> tuple[dict, dict, dict]:
    """Of one process with whole batches, and of two with a half each: `gradient_work.save_steps`."""
    folder = tmp_path_factory.mktemp("steps")
    gradient_work.save_steps(folder)
    launch(folder, gradient_work.save_steps, folder)
    return tuple(torch.load(folder / name, weights_only=True) for name in ("0-of-1.pt", "0-of-2.pt", "1-of-2.pt"))


@pytest.mark.parametrize("name", gradient_work.OBJECTIVES)
def test_gradients_and_state_are_those_of_one_process_with_both_batches(steps, name):
    alone, first, second = (result[name] for result in steps)
    assert alone.keys() == first.keys() == second.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        tolerance = 1e-6 + 5e-5 * value.abs().max()  # some gradients are 0 but for rounding
        assert (first[key] - value).abs().max() < tolerance, key
    moved = {key for key, value in alone.items() if key.startswith("2 ") and value.abs().max() > 1e-5}
    assert any("unet" in key or "prior" in key for key in moved) == (name[:2] != "vq" and "before" not in name)
    assert any("encoder" in key for key in moved) == (name not in ("prior", "pixelcnn", "e2e, frozen", "e2e, decoder"))
