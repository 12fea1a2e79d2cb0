"""Evaluations that are stopped and go on: what is on disk isn't measured again, and nothing else is taken for it."""

import functools
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    EvaluationConfig,
    ModelOutputs,
    RealImages,
    SampleStore,
    code_metrics,
    image_metrics,
    priors,
    read_results,
    real_images,
    run_metrics,
    runner,
    sample_store,
    write_report,
)
from diffusion_bridge_vq.training import PRESETS

N, BATCH = 40, 16
CONFIG = EvaluationConfig(num_inference_steps=2, num_nll_images=4, num_nll_samples=1)
CLOCKS = {"time", "quartiles"}
PAPER_METRICS = ("fid", "rfid", "nll", "bits", "kl", "reconstruction", "elbo", "timing")
# what each start of a metric that isn't measured yet calls in the end
MEASURES = {
    priors: ("bridge_nll", "denoising_errors", "elbo_terms"),
    image_metrics: ("frechet_distance", "precision_recall", "psnr"),
    code_metrics: ("code_kl", "seconds_per_sample"),
}


class Killed(BaseException):
    """No handler that catches errors sees it."""


@functools.cache
def load_digits(split: str):
    return load_images("digits", resolution=16, channels=1, split=split)


def digits(monkeypatch, test: str = "test") -> RealImages:
    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)

    monkeypatch.setattr(real_images, "load_extractor", lambda name, device: features)
    return RealImages("digits", load_digits("train"), load_digits(test), N, "quarters", "cpu")


@pytest.fixture
def real(monkeypatch) -> RealImages:
    return digits(monkeypatch)


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    monkeypatch.setattr(code_metrics, "TIMING_REPEATS", 1)
    monkeypatch.setattr(code_metrics, "TIMING_BATCH", 1)
    monkeypatch.setattr(code_metrics, "ELBO_TIMESTEPS", 1)


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often samples are drawn and figures computed, by name; "draw" are batches of samples."""
    seen: Counter = Counter()

    def count(owner, attribute: str, name: str = "") -> None:
        function = getattr(owner, attribute)

        def counted(*args, **kwargs):
            value = function(*args, **kwargs)
            if not name or kwargs.get("output_type") == "latent":
                seen[name or attribute] += 1
            return value

        monkeypatch.setattr(owner, attribute, counted)

    count(DiffusionBridgeVQPipeline, "__call__", "draw")
    for owner, names in MEASURES.items():
        for name in names:
            count(owner, name)
    return seen


def measure(
    folder, real, names=PAPER_METRICS, config=CONFIG, pipe=None, model="bridge", batch_size=BATCH, preset="tiny"
) -> None:
    folder.mkdir(exist_ok=True)
    store = SampleStore(folder / "figures.safetensors")
    outputs = ModelOutputs(model, pipe or make_gray_pipeline(), real, store, config, batch_size)
    run_metrics(names, outputs, folder, preset=preset)


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture
def measured(templates, real, tmp_path):
    """Makes `tmp_path` a folder where these metrics were measured, once for all tests."""

    def prepare(*names: str) -> None:
        template = templates / "-".join(names)
        if not template.exists():
            measure(template, real, names)
        shutil.copytree(template, tmp_path, dirs_exist_ok=True)

    return prepare


def figures(folder) -> list[dict]:
    """All results, sorted, without what the clock says."""
    found = [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_results(folder / "results.json")]
    timed = [r for r in found if r["name"] == "seconds_per_sample"]
    assert len(timed) <= 1 and all(r.pop("value") > 0 for r in timed)
    return sorted(found, key=lambda r: r["name"])


def killed_at(owner, name: str, number: int):
    """`owner.name`, but that its call of that number, from 1, doesn't come to pass."""
    original, seen = getattr(owner, name), 0

    def killed(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen == number:
            raise Killed
        return original(*args, **kwargs)

    return killed


def test_a_killed_evaluation_goes_on(real, calls, tmp_path, monkeypatch):
    """Killed before any batch of samples and any metric, it finds the same figures, and no work is done twice."""
    measure(tmp_path / "whole", real)
    whole = calls.copy()
    assert whole["draw"] == 3 and whole["bridge_nll"] == 2 and whole["frechet_distance"] == 4
    places = [(DiffusionBridgeVQPipeline, "__call__", 2), (DiffusionBridgeVQPipeline, "__call__", 3)]
    places += [(runner, "recall_results", number) for number in range(1, 10)]  # eight metrics, nll with two masks
    for number, place in enumerate(places):
        folder = tmp_path / str(number)
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(*place[:2], killed_at(*place))
            measure(folder, real)
        assert sum(calls.values()) < sum(whole.values())
        measure(folder, real)
        assert calls == whole, place
        assert figures(folder) == figures(tmp_path / "whole")
        kept = load_file(folder / "figures.safetensors")
        for key, tensor in load_file(tmp_path / "whole" / "figures.safetensors").items():
            assert torch.equal(kept[key], tensor), key

    calls.clear()
    before = (folder / "results.json").read_bytes()
    measure(folder, real)
    assert not calls and (folder / "results.json").read_bytes() == before


def other_weights():
    pipe = make_gray_pipeline()
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.001)
    return pipe


def other_scheduler():
    pipe = make_gray_pipeline()
    pipe.scheduler = OUBridgeScheduler(num_train_timesteps=20, eta=1.0)
    return pipe


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"pipe": other_weights}, {"kl", "nll", "reconstruction"}),
        ({"pipe": other_scheduler}, {"kl", "nll", "reconstruction"}),
        ({"config": EvaluationConfig(num_inference_steps=3, num_nll_images=4, num_nll_samples=1)}, {"kl", "nll"}),
        ({"config": EvaluationConfig(num_inference_steps=2, num_nll_images=5, num_nll_samples=1)}, {"nll"}),
        ({"config": EvaluationConfig(num_inference_steps=2, num_nll_images=4, num_nll_samples=2)}, {"nll"}),
        (
            {"config": EvaluationConfig(num_inference_steps=2, num_nll_images=4, num_nll_samples=1, solver="ddim")},
            {"kl"},
        ),
        (
            {"config": EvaluationConfig(num_inference_steps=2, num_nll_images=4, num_nll_samples=1, seed=1)},
            {"kl", "nll", "reconstruction"},
        ),
        ({"real": "train"}, {"kl", "nll", "reconstruction"}),
        ({"preset": "other"}, {"kl", "nll", "reconstruction"}),
        ({"batch_size": 20}, set()),
    ],
    ids=["weights", "scheduler", "steps", "images", "draws", "solver", "seed", "reference", "facts", "batch"],
)
def test_what_is_changed_is_measured_anew(real, measured, calls, tmp_path, monkeypatch, changes, again):
    names = ("kl", "nll", "reconstruction")
    measured(*names)
    before = read_results(tmp_path / "results.json")
    calls.clear()
    if "pipe" in changes:
        changes = {"pipe": changes["pipe"]()}
    test = changes.get("real", "test")
    options = {k: v for k, v in changes.items() if k != "real"}
    measure(tmp_path, digits(monkeypatch, test), names, **options)
    added = [r for r in read_results(tmp_path / "results.json") if r not in before]
    assert {r["metric"] for r in added} == again
    assert calls["code_kl"] == 2 * ("kl" in again) and calls["psnr"] == ("reconstruction" in again)
    assert calls["bridge_nll"] == 2 * ("nll" in again)
    # the codes of a model are drawn again where they would be others, and the old ones go
    same_codes = {"real", "preset"} & changes.keys()
    assert calls["draw"] == (0 if same_codes or "kl" not in again else 3)
    assert sum(name.startswith("codes/") for name in load_file(tmp_path / "figures.safetensors")) == 1

    calls.clear()
    measure(tmp_path, real, names)  # and back: everything is there already
    assert not calls["code_kl"] and not calls["bridge_nll"] and not calls["psnr"]
    newest = {r["name"]: r for r in read_results(tmp_path / "results.json")}
    assert newest == {r["name"]: r for r in before}


def test_a_time_is_that_of_its_device(real, calls, tmp_path, monkeypatch):
    measure(tmp_path, real, ("timing", "kl"))
    monkeypatch.setattr(runner, "describe_device", lambda device: "another machine's")
    measure(tmp_path, real, ("timing", "kl"))
    assert calls["seconds_per_sample"] == 2 and calls["code_kl"] == 2


def test_a_copied_model_has_the_same_fingerprint(real, calls, tmp_path):
    pipe = make_gray_pipeline()
    measure(tmp_path, real, ("kl",), pipe=pipe)
    for folder in ("here", "there"):
        pipe.save_pretrained(tmp_path / folder)
        pipe = DiffusionBridgeVQPipeline.from_pretrained(tmp_path / folder)
        measure(tmp_path, real, ("kl",), pipe=pipe)
    assert calls["code_kl"] == 2 and calls["draw"] == 3


def test_pictures_of_other_draws_go_with_their_codes(real, tmp_path):
    for name in ("bridge", "bridge-e2e"):
        measure(tmp_path, real, ("fid",), model=name)
    measure(tmp_path, real, ("kl",), pipe=other_weights())
    kept = load_file(tmp_path / "figures.safetensors")
    pictures = {name for name in kept if not name.startswith("codes/")}
    assert pictures == {"kl/bridge", "kl_floor/bridge", "samples/bridge-e2e"}
    measure(tmp_path, real, ("fid",), pipe=other_weights())  # the same draws
    assert {"kl/bridge", "samples/bridge"} <= load_file(tmp_path / "figures.safetensors").keys()


def test_models_share_the_files(real, calls, tmp_path):
    for name in ("one", "two"):
        measure(tmp_path, real, ("kl", "fid"), model=name)
    kept = load_file(tmp_path / "figures.safetensors")
    assert Counter(name.split("/")[0] for name in kept) == dict.fromkeys(("codes", "kl", "kl_floor", "samples"), 2)
    assert calls["draw"] == 6 and {r["model"] for r in read_results(tmp_path / "results.json")} == {"one", "two"}


@pytest.mark.parametrize("name", ["results.json", "figures.safetensors"])
def test_damaged_files_are_named_and_left_alone(real, measured, calls, tmp_path, name):
    measured("kl")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    before = path.read_bytes()
    calls.clear()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        measure(tmp_path, real, ("kl", "fid"))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        write_report(tmp_path)
    assert path.read_bytes() == before and not calls["draw"]


def test_what_one_carries_home_is_small(measured, tmp_path):
    """At 5,000 images and three models, figures.safetensors stays below 20 MB with every preset."""
    measured("kl", "fid")
    kept = load_file(tmp_path / "figures.safetensors")
    shapes = {name.split("/")[0]: (tuple(tensor.shape), tensor.dtype) for name, tensor in kept.items()}
    assert shapes == {
        "codes": ((N, 4, 4), torch.uint8),
        "samples": ((N, 1, 16, 16), torch.uint8),
        "kl": ((4, 4), torch.float64),
        "kl_floor": ((4, 4), torch.float64),
    }
    for preset in PRESETS.values():
        vqvae, side, channels = (preset["common"][name] for name in ("vqvae", "resolution", "channels"))
        positions = (side // 2 ** (len(vqvae["block_out_channels"]) - 1)) ** 2
        of_codes = 5000 * positions * (1 if vqvae["num_vq_embeddings"] <= 256 else 2)
        assert 3 * (of_codes + 64 * channels * side**2 + 2 * 8 * positions) < 20e6


def test_a_writer_that_is_killed_leaves_the_old_figures(real, measured, tmp_path, monkeypatch):
    measured("kl")
    before = (tmp_path / "figures.safetensors").read_bytes()

    def half(tensors, path):
        save_file({"kl": torch.zeros(1)}, path)
        raise Killed

    monkeypatch.setattr(sample_store, "save_file", half)
    with pytest.raises(Killed):
        measure(tmp_path, real, ("fid",))
    assert (tmp_path / "figures.safetensors").read_bytes() == before


def spoil(folder, prefix: str, tensor: torch.Tensor) -> None:
    """Replace the stored tensor whose name begins with `prefix`."""
    path = folder / "figures.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if name.startswith(prefix))
    save_file(stored | {name: tensor}, path)


@pytest.mark.parametrize(
    ("prefix", "tensor", "message"),
    [
        ("codes/", torch.zeros(48, 16, dtype=torch.uint8), r"\(48, 16\) torch.uint8 as codes/bridge"),
        ("codes/", torch.zeros(48, 4, 4), r"\(48, 4, 4\) torch.float32 as codes/bridge"),
        ("codes/", torch.full((48, 4, 4), 200, dtype=torch.uint8), "as codes/bridge"),
        ("codes/", torch.zeros(48, 2, 2, dtype=torch.uint8), "as codes/bridge"),
    ],
)
def test_draws_that_no_evaluation_wrote(real, measured, tmp_path, prefix, tensor, message):
    """Some were taken for codes of the model; others ended in KeyError or RuntimeError."""
    measured("kl")
    spoil(tmp_path, prefix, tensor)
    before = (tmp_path / "figures.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"figures\.safetensors .*{message}.*drawn again"):
        measure(tmp_path, real, ("fid",))
    assert (tmp_path / "figures.safetensors").read_bytes() == before


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(2, 1, 16, 16), torch.zeros(0, 4, dtype=torch.float64)])
@pytest.mark.parametrize("kind", ["samples", "kl", "kl_floor"])
def test_pictures_that_no_evaluation_wrote(measured, tmp_path, kind, tensor):
    measured("kl", "fid")
    spoil(tmp_path, f"{kind}/", tensor)
    with pytest.raises(ValueError, match=rf"figures\.safetensors has .* as {kind}/bridge"):
        write_report(tmp_path)


def test_without_the_store_the_same_codes_are_drawn_again(real, measured, calls, tmp_path):
    measured("kl")
    calls.clear()
    before = load_file(tmp_path / "figures.safetensors")
    (tmp_path / "figures.safetensors").unlink()
    measure(tmp_path, real, ("kl", "fid"))
    assert calls["draw"] == 3 and not calls["code_kl"]
    again = load_file(tmp_path / "figures.safetensors")
    assert all(torch.equal(again[name], before[name]) for name in before if name.startswith("codes/"))
