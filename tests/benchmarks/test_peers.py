"""benchmarks/peers: every row trains, draws and is measured, with tiny networks; rows resume; errors are one line."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from benchmarks.peers import measure, results, rows, training
from benchmarks.peers.__main__ import main
from benchmarks.peers.data import Split
from benchmarks.peers.report import write_report
from benchmarks.peers.results import RowFolder
from benchmarks.peers.row import LossOf, Phase, Row, guided
from benchmarks.peers.settings import SETTINGS
from benchmarks.peers.training import choose_learning_rate, train_row
from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNPrior
from diffusion_bridge_vq.training.presets import preset_values

ROOT = Path(__file__).resolve().parents[2]
REAL = dict(SETTINGS)
NAMES = [name for table in rows.ROWS.values() for name in table]
HERE = [name for name in NAMES if name != "monai" or (find_spec("monai") and find_spec("einops"))]
QUICK = ["--seconds", "60", "--max-steps", "2", "--tune-fraction", "0", "--num-images", "60", "--search-images", "0"]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({3e-4: 0.4956, 1e-3: 0.4851, 3e-3: 0.4847}, 1e-3),  # as found on CIFAR-10, where 3e-3 diverged later
        ({3e-4: 0.2777, 1e-3: 0.2481, 3e-3: 0.2405}, 3e-3),
        ({3e-4: 0.9, 1e-3: 0.5, 3e-3: float("inf")}, 1e-3),
        (dict.fromkeys((3e-4, 1e-3, 3e-3), float("inf")), 3e-4),
    ],
)
def test_the_lowest_rate_that_is_as_good_as_the_best(losses, rate):
    assert choose_learning_rate(losses) == rate


def test_nothing_but_the_tokenizer_comes_from_the_checkpoint(data):
    """`init_from` once gave the rows of this package the shipped U-Net to start from."""
    torch.manual_seed(7)
    shipped = DiffusionBridgeVQPipeline.from_pretrained(data.setting.checkpoint)
    for name in ("bridge", "system"):
        row = rows.row_class(name)(data)
        fresh = row.networks()["unet"]
        assert not torch.equal(fresh.conv_in.weight, shipped.unet.conv_in.weight)
        assert fresh.class_embedding.weight.std() > 0.5  # diffusers' own start
    encoders = [vqvae.encoder.conv_in.weight for vqvae in (row.networks()["vqvae"], shipped.vqvae)]
    assert not torch.equal(*encoders)


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


# -------------------------------------------------------------------------------------------------- its parts


class Mean(Row):
    """Learns the mean of the labels: the least squares are known."""

    title = "mean"

    def __init__(self, data, learning_rate=None):
        super().__init__(data, learning_rate)
        self.value = torch.nn.Linear(1, 1, bias=False)

    def phases(self):
        return [Phase(LossOf(self.value, self.loss), self._tensors, 0.3)]

    def _tensors(self, split: Split):
        return {"labels": split.labels.float()}

    def loss(self, value, labels):
        return (value(torch.ones(1, 1)) - labels).square().mean()

    def networks(self):
        return torch.nn.ModuleDict({"value": self.value})

    def draw(self, labels, **options):
        raise AssertionError


def test_the_loop_finds_the_least_squares(data):
    torch.manual_seed(0)
    row = Mean(data)
    row.preset = row.preset | {"batch_size": 1500, "ema_decay": 0.9}
    trained = train_row(row, 60, max_steps=200)
    assert row.value.weight.item() == pytest.approx(data.train.labels.float().mean().item(), abs=0.02)
    test = data.test.labels.float()
    expected = (test - row.value.weight.item()).square().mean().item()
    assert trained.validation == [pytest.approx(expected, rel=1e-5)] and trained.steps == [200]


def test_guidance_is_the_formula():
    def predict(sample, labels):
        return sample * labels.float()[:, None]

    sample, labels = torch.ones(2, 3), torch.tensor([1, 2])
    expected = 9 + 2.5 * (labels.float()[:, None] - 9) * sample
    assert torch.equal(guided(predict, sample, labels, 9, 2.5), expected)
    assert torch.equal(guided(predict, sample, labels, 9, 1.0), predict(sample, labels))


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_a_network_that_knows_the_data_draws_them(data, name, monkeypatch):
    """All images are one point x: the velocity and the noise are known, so the samplers must end in x."""
    row = rows.row_class(name)(data)
    x = torch.randn(1, 3, 4, 4)
    drawn = {}
    monkeypatch.setattr(data, "decode_latents", lambda latents: drawn.setdefault("latents", latents))

    class Knows(torch.nn.Module):
        config = row.unet.config

        def forward(self, noisy, t, class_labels=None):
            t = torch.as_tensor(t).reshape(-1, 1, 1, 1)
            if name == "flow":
                velocity = (noisy - x) / (t / 1000)
                return type("Output", (), {"sample": velocity})
            alpha = row.scheduler.alphas_cumprod[t.long()]
            return type("Output", (), {"sample": (noisy - alpha.sqrt() * x) / (1 - alpha).sqrt()})

    network = Knows()
    assert row.loss(network, x.expand(64, -1, -1, -1), torch.zeros(64).long()).item() < 1e-6
    row.unet = network
    row.draw(torch.tensor([1, 2]), steps=10, guidance_scale=2.0)
    assert torch.allclose(drawn["latents"], x.expand(2, -1, -1, -1), atol=2e-2)


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


def test_the_time_of_fitting_belongs_to_the_row_and_trials_of_rates_do_without(data, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(training, "_train", lambda *arguments: (2, lambda: clock.__setitem__(0, clock[0] + 5) or 0.5))
    cls = rows.row_class("fitted")
    monkeypatch.setattr(cls, "finish", lambda row: clock.__setitem__(0, clock[0] + 100))
    assert train_row(cls(data), 60.0).seconds == [100.0]  # not the 5 s of the loss on test images
    before = clock[0]
    assert training.try_learning_rates(lambda rate: cls(data, rate), 1.0, 6.0, seed=0) == {
        1 / 3: 0.5,
        1.0: 0.5,
        3.0: 0.5,
    }
    assert clock[0] == before + 3 * 5


def test_fitted_steps_are_the_rows_own_and_are_kept_with_its_weights(data):
    """The network is called at the fitted timesteps; a fresh row with the same weights draws the same."""
    torch.manual_seed(0)
    row = rows.row_class("fitted")(data)
    trained = train_row(row, 60.0, max_steps=2)
    assert len(trained.steps) == 1
    fitted = row.points.known()
    assert {number: len(points) for number, points in fitted.items()} == {3: 3, 2: 2}
    assert all(points == sorted(points, reverse=True) for points in fitted.values())
    again = rows.row_class("fitted")(data)
    again.networks().load_state_dict(row.networks().state_dict())
    for each in (row, again):
        each.learner.eval()
        called = []
        hook = each.networks()["unet"].register_forward_pre_hook(
            lambda _, arguments, keywords, called=called: called.append(int(arguments[1].flatten()[0])),
            with_kwargs=True,
        )
        torch.manual_seed(1)
        each.drawn = each.draw(torch.tensor([1, 2]), steps=3)
        hook.remove()
        assert called == fitted[3]
    assert torch.equal(row.drawn, again.drawn)


def test_the_gpt_draws_its_own_law(data):
    """Codes of `generate` with the cache, one position at a time, against the law that one forward pass gives."""
    torch.manual_seed(0)
    row = rows.row_class("gpt")(data)
    row.model.eval()
    with torch.no_grad():  # a far from uniform law
        row.model.transformer.wte.weight.mul_(40)
    drawn = {}
    row.decode = lambda codes: drawn.setdefault("codes", codes)
    labels = torch.full((2000,), 3)
    row.draw(labels)
    start = row.class_tokens(labels[:1])
    logits = row.model(start).logits[0, -1, : row.num_codes]
    frequencies = torch.bincount(drawn["codes"][:, 0], minlength=row.num_codes) / 2000
    assert (frequencies - logits.softmax(0)).abs().max() < 0.045
    assert drawn["codes"].shape == (2000, 16) and int(drawn["codes"].max()) < row.num_codes
    first = int(drawn["codes"][0, 0])
    same = drawn["codes"][drawn["codes"][:, 0] == first][:, 1]
    second = row.model(torch.tensor([[int(start), first]])).logits[0, -1, : row.num_codes].softmax(0)
    assert (torch.bincount(same, minlength=row.num_codes) / len(same) - second).abs().max() < 4 / len(same) ** 0.5


def test_a_masked_transformer_that_knows_the_codes_draws_them(data):
    """Guided logits leave one code at each position: that of the class, with the null class's logits taken off."""
    row = rows.row_class("masked")(data)
    drawn, codes = {}, torch.arange(row.length) % row.num_codes
    row.decode = lambda codes: drawn.setdefault("codes", codes)

    def logits(model, tokens, class_tokens):
        """20 for the code of the class, and 30 for the code 0 whatever the class is."""
        wanted = (codes + class_tokens) % row.num_codes
        known = class_tokens[:, :, None] != row.num_codes + row.null_class
        own = 20.0 * torch.nn.functional.one_hot(wanted, row.num_codes) * known
        own[..., 0] += 30.0
        return own

    row._logits = logits
    labels = torch.tensor([1, 4])
    row.draw(labels, guidance_scale=3.0, temperature=2.0, steps=4)
    assert torch.equal(drawn["codes"], (codes + row.class_tokens(labels)) % row.num_codes)


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
