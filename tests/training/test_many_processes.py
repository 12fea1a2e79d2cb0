"""Drawing and evaluating on two and three processes: the images and figures of one, also after an interruption."""

import json
import shutil

import many_processes_work
import numpy as np
import pytest
import torch
from many_processes_work import IMAGES, draw_and_evaluate
from PIL import Image
from safetensors.torch import load_file
from warm_processes import launch

from diffusion_bridge_vq.evaluation import read_results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    draw_and_evaluate(folder)
    return folder


def pixels(folder, name):
    paths = [folder / name / "images" / f"{number:07}.png" for number in range(IMAGES)]
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_find_what_one_finds(processes, alone, tmp_path):
    """Three go on where one was stopped: after four images, two metrics and nine draws."""
    if processes == 3:
        shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
        for number in range(4, IMAGES):
            (tmp_path / "samples" / "images" / f"{number:07}.png").unlink()
        results = json.loads((tmp_path / "results.json").read_text())
        results["results"] = [r for r in results["results"] if r["metric"] in ("rfid", "reconstruction")]
        (tmp_path / "results.json").write_text(json.dumps(results))
        stored = load_file(tmp_path / "figures.safetensors")
        codes = {name: rows[:9].clone() for name, rows in stored.items() if name.startswith("codes/")}
        many_processes_work.SampleStore(tmp_path / "figures.safetensors").update(codes)
    launch(tmp_path, draw_and_evaluate, tmp_path, processes=processes)

    for name in ("samples", "drawn-from"):
        assert np.abs(pixels(tmp_path, name) - pixels(alone, name)).max() <= 1
    assert json.loads((tmp_path / "samples" / "sampling.json").read_text())["num_images"] == IMAGES
    for part, least in ((".", 25), ("conditioned", 12)):
        paths = [folder / part / "results.json" for folder in (alone, tmp_path)]
        expected, found = ({r["name"]: r for r in read_results(path)} for path in paths)
        assert found.keys() == expected.keys() and len(found) == len(read_results(paths[1])) > least
        for name in found.keys() - {"seconds_per_sample"}:
            assert found[name]["value"] == pytest.approx(expected[name]["value"], rel=1e-4, abs=1e-6), name
            assert found[name].get("std", 0) == pytest.approx(expected[name].get("std", 0), rel=1e-4, abs=1e-6), name
    pictures, others = (load_file(folder / "figures.safetensors") for folder in (alone, tmp_path))
    assert pictures.keys() == others.keys()
    for name, tensor in pictures.items():
        torch.testing.assert_close(others[name].double(), tensor.double(), rtol=1e-6, atol=1e-6)
