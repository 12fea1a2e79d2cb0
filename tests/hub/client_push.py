"""Runs that go to the Hub: what is in the commit, what survives errors, and who can load it."""

import contextlib
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file
from server import TOKEN
from tiny_pipeline import SKEWED, make_pipeline, rng
from tiny_run import TINY

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.evaluation import append_result
from diffusion_bridge_vq.grids import image_grid
from diffusion_bridge_vq.hub import PushOptions, push, push_run, upload_while_training, uploader

ROOT = Path(__file__).parents[2]
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = {f"{part}/{name}" for part in ("unet", "vqvae") for name in ("config.json", WEIGHTS)}
RUN_FILES = {"training/config.json", "training/metrics.jsonl", "evaluation/results.json", "samples.png"}
STUBS = {
    "pipeline.py",
    "scheduler/diffusion_bridge_vq.schedulers.scheduling_ou_bridge.py",
    "vqvae/diffusion_bridge_vq.models.autoencoder_gumbel_vq.py",
}


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(**SKEWED | {"num_train_timesteps": 50})  # a call's own number of steps


@pytest.fixture
def logged_in(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def run(pipe, tmp_path, monkeypatch) -> Path:
    """The folder of a run, full of this machine's paths."""
    folder = tmp_path / "the run"
    pipe.save_pretrained(folder / "pipeline")
    # saved, loaded and saved again: diffusers writes where it was loaded from
    DiffusionBridgeVQPipeline.from_pretrained(folder / "pipeline").save_pretrained(folder / "pipeline")
    assert str(folder) in (folder / "pipeline" / "vqvae" / "config.json").read_text()
    image = image_grid(pipe(4, num_inference_steps=2).images, columns=2)
    for step in (4, 8):
        image.save(folder / f"samples-{step:06d}.png")
    settings = {
        "preset": "digits",
        "dataset": str(tmp_path / "faces"),
        "output_dir": str(folder),
        "init_from": str(tmp_path),
        "max_train_steps": 8,
        "batch_size": 4,
        "num_inference_steps": 3,
        "seed": 0,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    lines = [{"step": step, "loss/prior": 1 / step} for step in (4, 8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    (folder / "evaluation").mkdir()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", f"it={folder}/pipeline", "--dataset", str(tmp_path)])
    append_result(folder / "evaluation" / "results.json", "psnr", 20.5, n=7, seed=3, model="it", dataset="faces")
    return folder


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=2, generator=rng(5), num_inference_steps=3, output_type="pt").images


def number_of_commits(hub, name):
    return len(hub.repos[name].commits)


def own_files(hub, name):
    return {path: content for path, content in hub.files(name).items() if path != ".gitattributes"}


# ------------------------------------------------------------------------------------------------- what is pushed


def test_one_commit_with_everything(hub, cache, pipe, run, tmp_path):
    address = push_run(run, "tester/model", token=TOKEN, license="mit")
    assert address == f"{hub.url}/tester/model"
    assert (
        hub.repos["tester/model"].private and number_of_commits(hub, "tester/model") == 2
    )  # one makes the repository
    files = own_files(hub, "tester/model")
    code = {name for name in files if re.fullmatch(r"diffusion_bridge_vq_[0-9a-f]{12}\.py", name)}
    others = {"README.md", "model_index.json", "scheduler/scheduler_config.json"}
    assert set(files) == PARTS | RUN_FILES | STUBS | others | code and len(code) == 1
    assert files["samples.png"] == (run / "samples-000008.png").read_bytes()
    here = [str(tmp_path), str(Path.home()) + "/", str(ROOT)]
    found = [(name, word) for name, content in files.items() for word in here if word.encode() in content]
    keys = ("_name_or_path", "output_dir", "init_from")
    found += [(name, key) for name in files if name.endswith(".json") for key in keys if key.encode() in files[name]]
    assert found == []
    assert json.loads(files["training/config.json"])["dataset"] == "faces"
    (result,) = json.loads(files["evaluation/results.json"])["results"]
    assert result["command"] == f"evaluate.py --model it=pipeline --dataset {tmp_path.name}"
    assert files["training/metrics.jsonl"].count(b"\n") == 2  # the line that was cut off isn't there
    loaded = DiffusionBridgeVQPipeline.from_pretrained("tester/model", token=TOKEN)
    assert torch.equal(draw(loaded), draw(pipe))

    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "diffusion-bridge-vq")
    (measured,) = card.data.eval_results
    assert (measured.metric_type, measured.metric_value, measured.dataset_type) == ("psnr", 20.5, "faces")
    assert measured.metric_args["seed"] == 3 and measured.metric_args["n"] == 7


def test_pushed_again(hub, cache, pipe, run):
    """Nothing new: no commit. Other code: the old one goes."""
    push_run(run, "tester/model", token=TOKEN)
    commits = number_of_commits(hub, "tester/model")
    hub.log.clear()
    push_run(run, "tester/model", token=TOKEN)
    assert number_of_commits(hub, "tester/model") == commits
    assert not [r for r in hub.log if r.method == "PUT"]
    hub.commit("tester/model", {"diffusion_bridge_vq_0123456789ab.py": b"old", "mine.py": b"kept"})
    push_run(run, "tester/model", token=TOKEN)
    names = set(hub.files("tester/model"))
    assert "mine.py" in names and "diffusion_bridge_vq_0123456789ab.py" not in names
    assert len([name for name in names if name.startswith("diffusion_bridge_vq_")]) == 1


def test_public(hub, cache, run, caplog):
    push_run(run, "tester/new", token=TOKEN, private=False)
    assert not hub.repos["tester/new"].private
    push_run(run, "tester/old", token=TOKEN)
    assert hub.repos["tester/old"].private
    push_run(run, "tester/old", token=TOKEN, private=False)
    assert not hub.repos["tester/old"].private
    with heard(caplog):
        push_run(run, "tester/old", token=TOKEN)
    assert "was public before and still is" in caplog.text and not hub.repos["tester/old"].private


@contextlib.contextmanager
def heard(caplog):
    """diffusers' loggers don't pass on what they hear."""
    loggers = [push.logger, uploader.logger]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield
    for logger in loggers:
        logger.removeHandler(caplog.handler)


def test_what_is_no_pipeline(hub, cache, run, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        push_run(tmp_path / "none", "tester/model", token=TOKEN)
    with pytest.raises(ValueError, match="isn't a repository's name"):
        push_run(run, "tester/a/b", token=TOKEN)
    index = run / "pipeline" / "model_index.json"
    index.write_text(index.read_text().replace("DiffusionBridgeVQPipeline", "DDPMPipeline"))
    with pytest.raises(ValueError, match="is of DDPMPipeline"):
        push_run(run, "tester/model", token=TOKEN)
    shutil.rmtree(run / "pipeline")
    with pytest.raises(ValueError, match="There is no pipeline in"):
        push_run(run, "tester/model", token=TOKEN)
    make_pipeline().save_pretrained(run / "pipeline", safe_serialization=False)
    with pytest.raises(ValueError, match="no weights in safetensors"):
        push_run(run, "tester/model", token=TOKEN)
    assert hub.repos == {}


def test_example(hub, cache, logged_in, run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", str(run), "tester/model", "--license", "mit"])
    runpy.run_path(str(ROOT / "examples" / "push_to_hub.py"), run_name="__main__")
    assert f"Pushed: {hub.url}/tester/model" in capsys.readouterr().out and hub.repos["tester/model"].private
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", str(run / "evaluation"), "tester/other"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "examples" / "push_to_hub.py"), run_name="__main__")
    assert "There is no pipeline in" in capsys.readouterr().err and "tester/other" not in hub.repos


# ---------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("path", "method", "fault"),
    [
        ("/lfs/", "PUT", {"cut": 1000}),
        ("/lfs/", "PUT", {"status": 500}),
        ("objects/batch", "POST", {"status": 429}),
        ("repos/create", "POST", {"status": 500}),
        ("repos/create", "POST", {"cut": 10}),
        ("/preupload/", "POST", {"status": 503}),
        ("/commit/", "POST", {"status": 409}),
        ("/commit/", "POST", {"status": 429}),
        ("/commit/", "POST", {"status": 500}),
        ("/commit/", "POST", {"cut": 1000}),
    ],
)
def test_goes_on_after_an_error(hub, cache, run, path, method, fault):
    hub.fail(method, path, **fault, headers={"Retry-After": "0"})
    push_run(run, "tester/model", token=TOKEN)
    assert not hub.faults and number_of_commits(hub, "tester/model") == 2
    weights = {part: (run / "pipeline" / part / WEIGHTS).read_bytes() for part in ("unet", "vqvae")}
    files = hub.files("tester/model")
    assert all(files[f"{part}/{WEIGHTS}"] == content for part, content in weights.items())
    assert set(files) >= RUN_FILES | STUBS


@pytest.mark.parametrize("status", [401, 403])
def test_refused(hub, cache, run, status):
    hub.add("tester/model", {"README.md": b"old"})
    hub.fail("POST", "/commit/", status=status)
    with pytest.raises(PermissionError, match="doesn't let you write to 'tester/model'"):
        push_run(run, "tester/model", token=TOKEN)
    with pytest.raises(PermissionError):
        push_run(run, "tester/model", token="hf_wrong")
    assert hub.files("tester/model") == {"README.md": b"old"}


def test_interrupted_push_sends_only_what_is_missing(hub, cache, run):
    oids = {
        part: hashlib.sha256((run / "pipeline" / part / WEIGHTS).read_bytes()).hexdigest()
        for part in ("unet", "vqvae")
    }
    hub.fail("PUT", f"/lfs/{oids['unet']}", cut=1000, times=1000)
    with pytest.raises(OSError, match=r"'tester/model' couldn't be pushed.*What was uploaded is kept"):
        push_run(run, "tester/model", token=TOKEN)
    assert oids["vqvae"] in hub.uploads and oids["unet"] not in hub.uploads
    assert own_files(hub, "tester/model") == {}
    hub.faults.clear()
    hub.log.clear()
    push_run(run, "tester/model", token=TOKEN)
    sent = [r.path.rsplit("/", 1)[1] for r in hub.log if r.method == "PUT"]
    assert oids["unet"] in sent and oids["vqvae"] not in sent and len(sent) == len(set(sent))
    assert set(hub.files("tester/model")) >= PARTS


# ------------------------------------------------------------------------------------------------- while training


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)  # time.sleep does nothing here
    raise AssertionError("it never came")


def test_beside_training(hub, cache, pipe, run, tmp_path, caplog):
    """The folder fills up; the connection goes and comes back; at the end all is there."""
    folder = tmp_path / "growing"
    # down before it starts
    hub.fail("POST", ".", cut=0, times=10_000)
    with heard(caplog), upload_while_training(folder, PushOptions("tester/model"), token=TOKEN, every=0.02):
        assert "Training starts all the same" in caplog.text
        folder.mkdir()
        for name in ("config.json", "metrics.jsonl", "samples-000004.png"):
            shutil.copy(run / name, folder)
        wait_until(lambda: "the next one comes in" in caplog.text)
        hub.faults.clear()
        wait_until(lambda: "tester/model" in hub.repos and "samples.png" in hub.files("tester/model"))
        assert "README.md" not in hub.files("tester/model")
        shutil.copytree(run / "pipeline", folder / "pipeline")
    assert hub.repos["tester/model"].private
    assert torch.equal(draw(DiffusionBridgeVQPipeline.from_pretrained("tester/model", token=TOKEN)), draw(pipe))
    assert "README.md" in hub.files("tester/model")


def test_nothing_comes_of_it(hub, cache, run, caplog, monkeypatch):
    """A Hub that is never there costs a warning; one that says no does so at the start; a failed run isn't pushed."""
    with heard(caplog):
        hub.fail("POST", ".", status=500, times=10_000)
        with upload_while_training(run, PushOptions("tester/model"), token=TOKEN):
            pass
        assert "push_to_hub.py" in caplog.text and str(run) in caplog.text
    hub.faults.clear()
    with (
        pytest.raises(PermissionError, match="hf auth login"),
        upload_while_training(run, PushOptions("tester/model"), token="hf_wrong"),
    ):
        raise AssertionError("training began")
    with pytest.raises(KeyboardInterrupt), upload_while_training(run, PushOptions("tester/model"), token=TOKEN):
        raise KeyboardInterrupt
    assert own_files(hub, "tester/model") == {}
    hub.log.clear()
    with upload_while_training(run, None):
        pass
    monkeypatch.setenv("RANK", "1")
    with upload_while_training(run, PushOptions("tester/model"), token=TOKEN):
        pass
    assert hub.log == []


def test_training_script(hub, cache, logged_in, tmp_path, monkeypatch, capsys):
    options = {
        "output-dir": tmp_path / "e2e",
        "resolution": 8,
        "batch-size": 400,
        "max-train-steps": 4,
        "num-inference-steps": 2,
        "report-to": "none",
        "vqvae": json.dumps(TINY["vqvae"]),
        "unet": json.dumps(TINY["unet"]),
        "push-to-hub": "tester/digits",
        "license": "mit",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    script = str(ROOT / "examples" / "train_e2e.py")
    monkeypatch.setattr(sys, "argv", ["train_e2e.py", *arguments, "--dry-run"])
    runpy.run_path(script, run_name="__main__")
    assert hub.log == []
    hub.fail("POST", "/commit/", cut=100, times=2)
    monkeypatch.setattr(sys, "argv", ["train_e2e.py", *arguments])
    runpy.run_path(script, run_name="__main__")
    assert f"Pushed: {hub.url}/tester/digits" in capsys.readouterr().out
    files = hub.files("tester/digits")
    assert {"samples.png", "reconstructions.png", "training/metrics.jsonl"} <= set(files)
    assert [name for name, content in files.items() if str(tmp_path).encode() in content] == []
    card = ModelCard(files["README.md"].decode())
    assert "4 steps" in card.text and "Optical Recognition" in card.text and card.data.license == "mit"
    pushed, kept = (
        DiffusionBridgeVQPipeline.from_pretrained(name) for name in ("tester/digits", tmp_path / "e2e" / "pipeline")
    )
    assert torch.equal(draw(pushed), draw(kept))
    monkeypatch.setattr(sys, "argv", ["train_e2e.py", "--public"])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert "go with --push-to-hub" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train_e2e.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    help_text = capsys.readouterr().out
    assert "--push-to-hub" in help_text and "--max-train-steps" in help_text


# ------------------------------------------------------------------------------------------- without the package

WITHOUT = """
import sys

sys.modules["diffusion_bridge_vq"] = None  # importing it fails, installed or not
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

folder = sys.argv[1]
drawn = {}


def load(name, custom_pipeline="pipeline"):
    pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=custom_pipeline, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(name, pipe):
    steps = {"num_inference_steps": 3} if hasattr(pipe, "unet") else {}
    generator = torch.Generator().manual_seed(5)
    drawn[name] = pipe(batch_size=2, generator=generator, output_type="pt", **steps).images.contiguous()


bridge = load("tester/model")
draw("bridge", bridge)
draw("bridge by the repository's name", load("tester/model", "tester/model"))
pixelcnn = load("tester/pixelcnn")
draw("pixelcnn", pixelcnn)
draw("bridge, after others were loaded", bridge)
bridge.save_pretrained(f"{folder}/bridge")
pixelcnn.save_pretrained(f"{folder}/pixelcnn")
draw("bridge, saved again", load(f"{folder}/bridge"))
draw("pixelcnn, saved again", load(f"{folder}/pixelcnn"))
load(f"{folder}/bridge").save_pretrained(f"{folder}/thrice")
draw("bridge, saved thrice", load(f"{folder}/thrice"))
draw("bridge, by its own class", type(bridge).from_pretrained(f"{folder}/bridge"))
exec(open(f"{folder}/snippet.py").read())
assert len(images) == 16
assert not [name for name in sys.modules if name.split(".")[0] == "diffusion_bridge_vq" and sys.modules[name]]
save_file(drawn, f"{folder}/drawn.safetensors")
"""


def snippets(card: bytes) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.decode(), re.DOTALL)


def test_snippet_of_the_card(hub, cache, logged_in, run):
    push_run(run, "tester/model", token=TOKEN)
    with_package, without = snippets(hub.files("tester/model")["README.md"])
    names: dict = {}
    exec(with_package, names)
    assert len(names["images"]) == 16 and names["images"][0].size == (6, 6)
    assert "diffusion_bridge_vq" not in without  # it is run below


def test_without_the_package(hub, cache, pipe, run, tmp_path):
    """The same images, also of what was saved again, and code that isn't the package's never comes in."""
    torch.manual_seed(2)
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3).eval()
    pixelcnn = PixelCNNVQPipeline(pipe.vqvae, prior)
    pixelcnn.set_progress_bar_config(disable=True)
    pixelcnn.save_pretrained(tmp_path / "pixelcnn" / "pipeline")
    push_run(run, "tester/model", token=TOKEN)
    push_run(tmp_path / "pixelcnn", "tester/pixelcnn", token=TOKEN)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "snippet.py").write_text(snippets(hub.files("tester/model")["README.md"])[1])
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN")
    }
    env |= {"HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}  # a private repository
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "might require" not in done.stderr and "Expected types" not in done.stderr
    expected = {"bridge": draw(pipe), "pixelcnn": pixelcnn(2, rng(5), output_type="pt").images}
    drawn = load_file(folder / "drawn.safetensors")
    assert len(drawn) == 8
    for name, images in drawn.items():
        assert torch.equal(images, expected[re.match(r"\w+", name)[0]]), name

    # with the package: its classes, none of the code
    for again in ("bridge", "thrice"):
        loaded = DiffusionBridgeVQPipeline.from_pretrained(folder / again)
        assert type(loaded.vqvae) is type(pipe.vqvae) and torch.equal(draw(loaded), expected["bridge"])
    assert torch.equal(
        PixelCNNVQPipeline.from_pretrained(folder / "pixelcnn")(2, rng(5), output_type="pt").images,
        expected["pixelcnn"],
    )
