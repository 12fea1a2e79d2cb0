"""benchmarks/peers: every row trains, draws and is measured, with tiny networks; rows resume; errors are one line."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from benchmarks.peers import measure, results, rows
from benchmarks.peers.__main__ import main
from benchmarks.peers.report import write_report
from benchmarks.peers.results import RowFolder
from benchmarks.peers.settings import SETTINGS
from diffusion_bridge_vq import PixelCNNPrior
from diffusion_bridge_vq.training.presets import preset_values

ROOT = Path(__file__).resolve().parents[2]
REAL = dict(SETTINGS)
NAMES = [name for table in rows.ROWS.values() for name in table]
HERE = [name for name in NAMES if name != "monai" or (find_spec("monai") and find_spec("einops"))]
QUICK = ["--seconds", "60", "--max-steps", "2", "--tune-fraction", "0", "--num-images", "60", "--search-images", "0"]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def output(tiny, tmp_path_factory) -> Path:
    """What one command leaves."""
    folder = tmp_path_factory.mktemp("peers")
    main([*QUICK, "--rows", *HERE, "--output-dir", str(folder)])
    return folder


@pytest.mark.parametrize("name", HERE)
def test_every_row_is_measured(output, name):
    folder = output / "digits" / f"{name}-seed0"
    trained, found = (json.loads((folder / f"{n}.json").read_text()) for n in ("training", "figures"))
    assert set(trained["steps"]) == {2} and trained["versions"]
    assert found["n"] == 60 and found["frechet_real"] > 0 and 0 <= found["accuracy"] <= 1
    assert ("frechet_own" in found) == (name != "pixel-ddpm")
    title = rows.row_class(name).title
    (line,) = [line for line in (output / "digits" / "table.md").read_text().splitlines() if title in line]
    assert f"{found['frechet_real']:.3g}" in line
    assert (output / "digits" / f"samples-{rows.table_of(name)}.png").is_file()


def test_rows_that_were_not_run_say_so(tmp_path):
    folders = [RowFolder(tmp_path, name, {"data": "digits", "seed": 0}) for name in NAMES]
    (written,) = write_report(folders, tmp_path)
    lines = written.read_text().splitlines()
    assert all(f"| {rows.row_class(name).title} | not run |" in " ".join(lines) for name in NAMES)


def test_another_seed_joins_the_table(output, tmp_path, capsys):
    """The mean of both and their range; rows of the first seed stay."""
    folder = shutil.copytree(output / "digits", tmp_path / "digits")
    main([*QUICK, "--rows", "pixelcnn", "--seeds", "1", "--output-dir", str(tmp_path)])
    values = [json.loads((folder / f"pixelcnn-seed{k}/figures.json").read_text())["frechet_real"] for k in (0, 1)]
    table = capsys.readouterr().out
    assert f"| {sum(values) / 2:.3g} ({min(values):.3g} to {max(values):.3g}) |" in table
    assert ("not run" in table) == (len(HERE) < len(NAMES))
    (folder / "pixelcnn-seed1-copy").mkdir()  # no seed
    main([*QUICK[:3], "1", *QUICK[4:], "--rows", "pixelcnn", "--seeds", "2", "--output-dir", str(tmp_path)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| PixelCNN |")]
    assert " to " not in line  # the others had two steps


def test_an_interrupted_row_continues_with_what_it_lacks(output, capsys):
    """Killed after drawing: weights and samples stay. Killed while training: it trains anew. Else nothing happens."""
    folder = output / "digits" / "flow-seed0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "figures.json").unlink()
    (output / "digits" / "student-seed0" / "figures.json").unlink()  # its scheduler is made again
    main([*QUICK, "--rows", "bridge", "flow", "student", "--output-dir", str(output)])
    lines = capsys.readouterr().out
    assert "bridge: done before" in lines and "flow: 2 steps" not in lines.replace("[2] steps", "2 steps")
    for name in ("weights.safetensors", "samples.safetensors"):
        assert (folder / name).read_bytes() == before[name]
    figures = [json.loads(text) for text in (before["figures.json"], (folder / "figures.json").read_bytes())]
    assert figures[0]["frechet_real"] == pytest.approx(figures[1]["frechet_real"])
    for name in ("training.json", "samples.safetensors", "figures.json"):
        (folder / name).unlink()
    main([*QUICK, "--rows", "flow", "--output-dir", str(output)])
    assert "flow: was interrupted while it was trained; it is trained anew" in capsys.readouterr().out
    for name, tensor in load(before["weights.safetensors"]).items():  # the same seed; the rate follows the clock
        assert torch.allclose(load_file(folder / "weights.safetensors")[name], tensor, atol=1e-3), name


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.rstrip().split("\n")[-1]


def test_other_settings_are_refused(output, capsys):
    line = fails(capsys, *QUICK[:-1], "51", "--rows", "gpt", "--output-dir", output)
    assert "gpt-seed0 has search_images 0, not 51: give the same again, or another --output-dir" in line
    line = fails(capsys, *QUICK, "--rows", "system", "--autoencoder-fraction", "0.5", "--output-dir", output)
    assert "system-seed0 has autoencoder_fraction None, not 0.5" in line
    line = fails(capsys, *QUICK[:-1], "48", "--rows", "gpt", "--output-dir", output)
    assert "--search-images 48 is too few for a distance of 48 features" in line
    usual = str(SETTINGS["digits"].autoencoder_fraction)
    main([*QUICK, "--rows", "system", "--autoencoder-fraction", usual, "--output-dir", str(output)])
    main([*QUICK, "--rows", "gpt", "stable", "--autoencoder-fraction", "0.5", "--output-dir", str(output)])
    assert capsys.readouterr().out.count("done before") == 3


SAMPLES = {"data": "digits", "seed": 0, "images": "x", "seconds": 60, "tune_fraction": 0, "autoencoder_fraction": None}
SAMPLES |= {"max_steps": 2, "num_images": 60, "features": "latents", "search_images": 0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("search_images", 51, "samples.safetensors has search_images 0, not 51: give the same again, or remove it"),
        ("features", "efficientnet-lite0", "samples.safetensors has features latents, not efficientnet-lite0"),
        ("features", "latents", "it goes on"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_samples_of_another_search_are_refused(tmp_path, monkeypatch, key, value, message, old):
    """They were measured as if they were of the new one. Older files don't say of which they are."""
    before, after = (RowFolder(tmp_path, "gpt", settings) for settings in (SAMPLES, SAMPLES | {key: value}))
    before.path.mkdir(parents=True)
    before.write(before.training, {"learning_rate": 0.1})
    results._save_samples(before, torch.zeros(60, 1, 2, 2, dtype=torch.uint8), torch.zeros(60), {})
    if old:
        save_file(load_file(before.samples), before.samples, {"facts": "{}"})

    def goes_on(name):
        raise ValueError("it goes on")

    monkeypatch.setattr(results, "row_class", goes_on)
    with pytest.raises(ValueError, match="it goes on" if old else message):
        results.run_row(after, SimpleNamespace(setting=None), None, 0, None)


def test_damaged_files_are_named(output, capsys):
    folder = output / "digits" / "ddpm-seed0"
    (folder / "figures.json").unlink()
    kept = (folder / "samples.safetensors").read_bytes()
    (folder / "samples.safetensors").write_bytes(kept[:100])
    line = fails(capsys, *QUICK, "--rows", "ddpm", "--output-dir", output)
    assert "samples.safetensors is damaged: remove it, and it is drawn again" in line
    (folder / "training.json").write_text("{")
    assert "training.json is damaged: remove" in fails(capsys, *QUICK, "--rows", "ddpm", "--output-dir", output)


def test_data_without_classes(capsys, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (16, 16), number).save(tmp_path / "photos" / split / f"{number}.png")
    line = fails(capsys, "--rows", "bridge", "--dataset", tmp_path / "photos", "--output-dir", tmp_path / "out")
    assert "photos has no classes" in line and "a folder of their own" in line
    assert not (tmp_path / "out").exists()


def test_cifar10_needs_its_folder(capsys):
    assert "--data cifar10 needs --dataset" in fails(capsys, "--data", "cifar10")


@pytest.mark.parametrize(("found", "words"), [(None, "isn't installed"), ("1.0.0", "is here as 1.0.0")])
def test_a_missing_or_other_package(capsys, monkeypatch, found, words):
    def version(name: str) -> str:
        if found is None:
            raise rows.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(rows, "version", version)
    line = fails(capsys, "--rows", "monai")
    assert "monai>=" in line and words in line and "pip install -e '.[peers]'" in line


def test_the_extra_is_what_the_rows_ask_for():
    text = (ROOT / "setup.py").read_text()
    asked = ", ".join(f'"{bound}"' for bound in rows.PEERS)
    assert f"PEERS = [{asked}]" in text and '"peers": PEERS' in text


def test_seconds_are_measured_again_and_nothing_else(output, tmp_path, monkeypatch, capsys):
    shutil.copytree(output / "digits" / "fitted-seed0", tmp_path / "digits" / "fitted-seed0")
    path = tmp_path / "digits" / "fitted-seed0" / "figures.json"
    before = json.loads(path.read_text())
    monkeypatch.setattr(results, "cpu_seconds", lambda row, steps: {"seconds_batch_1": steps, "seconds_batch_32": 7.0})
    main([*QUICK, "--rows", "fitted", "--time-again", "--output-dir", str(tmp_path)])
    steps = before["options"]["steps"]
    assert json.loads(path.read_text()) == before | {"seconds_batch_1": steps, "seconds_batch_32": 7.0}
    line = fails(capsys, *QUICK, "--rows", "fitted", "gpt", "--time-again", "--output-dir", tmp_path)
    assert "gpt-seed0 isn't finished: leave --time-again out" in line


def test_features_of_an_extractor_are_computed_once(data, tmp_path, monkeypatch):
    calls = []

    def load(name):
        return lambda images: calls.append(len(images)) or images.float().flatten(1)[:, ::16]

    monkeypatch.setattr(measure, "load_extractor", load)
    figures = measure.Figures(data, "efficientnet-lite2", 60, tmp_path)
    first, count = figures.kept(data.test.images[:50]), len(calls)
    again = measure.Figures(data, "efficientnet-lite2", 60, tmp_path)
    assert torch.equal(again.kept(data.test.images[:50]), first) and len(calls) == count
    assert torch.equal(again.real, data.train.images[torch.linspace(0, 1499, 60).long()].flatten(1)[:, ::16].float())
    stored = next(tmp_path.iterdir())
    stored.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged: remove it, and it is computed again"):
        for images in (figures.reference, figures.others, data.test.images[:50]):
            figures.kept(images)


def test_steps_are_the_fewest_that_lose_nothing(monkeypatch):
    distances = {(1.0, 20): 3.0, (1.5, 20): 2.0, (1.5, 8): 2.5, (1.5, 12): 2.03, (1.5, 50): 2.0}

    class Searched:
        search = {"guidance_scale": (1.0, 1.5), "steps": (20, 8, 12, 50)}

    class Given:
        def distance(self, options):
            return distances[tuple(options.values())]

    monkeypatch.setattr(measure, "draw", lambda row, count, seed, **options: (options, None))
    chosen, tried = measure.search_options(Searched(), Given(), 0, 10)
    assert chosen == {"guidance_scale": 1.5, "steps": 12} and len(tried) == 5


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_priors_have_equal_weights(name, data):
    """Those of table A at the sizes that are run, within 15 % of the U-Net."""
    setting = REAL[name]
    codes = {"digits": 64, "cifar10": 256}[name]
    preset = preset_values(setting.preset, "prior")
    sizes = SimpleNamespace(setting=setting, num_classes=10, side=preset["resolution"] // 4, num_codes=codes)
    sizes.training, sizes.latents = None, lambda split: None
    with torch.device("meta"):
        counted = {name: rows.row_class(name)(sizes).networks() for name in ("flow", "ddpm", "gpt", "masked")}
        own = {"num_codes": codes, "sample_size": sizes.side, "num_class_embeds": 11}
        counted["pixelcnn"] = PixelCNNPrior(**own, **setting.pixelcnn)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in counted.items()}
    assert all(abs(count / counts["flow"] - 1) < 0.15 for count in counts.values()), counts


def test_the_bridge_has_the_network_of_its_rivals(output):
    weights = {
        json.loads((output / "digits" / f"{name}-seed0" / "training.json").read_text())["weights"]
        for name in ("bridge", "flow")
    }
    assert len(weights) == 1
