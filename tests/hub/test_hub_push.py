"""Runs that go to the Hub: what is in the commit, and what survives errors."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from heard_logs import heard
from hub_server import TOKEN
from huggingface_hub import ModelCard
from pipeline_files import FILES, INDEX, PARTS, WEIGHTS, draw
from push_helpers import LOGGERS, own_files
from tiny_models import make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.hub import push_run
from diffusion_bridge_vq.hub.blocks import BLOCK_FILES

RUN_FILES = {"training/config.json", "training/metrics.jsonl", "evaluation/results.json", "samples.png"}
STUBS = {
    "pipeline.py",
    "block.py",
    "modular_config.json",
    "modular_model_index.json",
    "scheduler/diffusion_bridge_vq.schedulers.scheduling_ou_bridge.py",
    "vqvae/diffusion_bridge_vq.models.autoencoder_gumbel_vq.py",
    "vqvae/modeling.py",
    "unet/modeling.py",
}


def number_of_commits(hub, name):
    return len(hub.repos[name].commits)


# ------------------------------------------------------------------------------------------------- what is pushed


def test_one_commit_with_everything(hub, cache, pipe, run, tmp_path):
    address = push_run(run, "tester/model", token=TOKEN, license="mit")
    assert address == f"{hub.url}/tester/model"
    assert hub.repos["tester/model"].private
    assert number_of_commits(hub, "tester/model") == 2  # one makes the repository
    files = own_files(hub, "tester/model")
    code = {name for name in files if re.fullmatch(r"diffusion_bridge_vq_(blocks_)?[0-9a-f]{12}\.py", name)}
    assert set(files) == FILES | RUN_FILES | STUBS | {"README.md"} | code and len(code) == 2
    assert files["samples.png"] == (run / "samples-000008.png").read_bytes()
    here = [
        str(tmp_path),
        tmp_path.name,
        "anna meier",
        "faces",
        str(Path.home()) + "/",
        str(Path(__file__).parents[2]),
    ]
    found = [(name, word) for name, content in files.items() for word in here if word.encode() in content]
    keys = ('"_name_or_path"', "output_dir", "init_from")
    found += [(name, key) for name in files if name.endswith(".json") for key in keys if key.encode() in files[name]]
    assert found == []
    assert json.loads(files["training/config.json"])["dataset"] == "unnamed-dataset"
    (result,) = json.loads(files["evaluation/results.json"])["results"]
    assert result["command"] == "python evaluate.py --model it=MODEL --dataset DATASET"
    assert files["training/metrics.jsonl"].count(b"\n") == 2  # the line that was cut off isn't there
    loaded = DiffusionBridgeVQPipeline.from_pretrained("tester/model", token=TOKEN)
    assert torch.equal(draw(loaded), draw(pipe))

    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "diffusion-bridge-vq")
    (measured,) = card.data.eval_results
    assert (measured.metric_type, measured.metric_value, measured.dataset_type) == ("psnr", 20.5, "unnamed-dataset")
    assert measured.metric_args["seed"] == 3 and measured.metric_args["n"] == 7


def test_pushed_again(hub, cache, pipe, run):
    """Nothing new: no commit. Other code: the old one goes."""
    push_run(run, "tester/model", token=TOKEN)
    commits = number_of_commits(hub, "tester/model")
    hub.log.clear()
    push_run(run, "tester/model", token=TOKEN)
    assert number_of_commits(hub, "tester/model") == commits
    assert not [r for r in hub.log if r.method == "PUT"]
    before = set(hub.files("tester/model"))
    old = {"diffusion_bridge_vq_0123456789ab.py": b"old", "diffusion_bridge_vq_blocks_0123456789ab.py": b"old"}
    hub.commit("tester/model", old | {"mine.py": b"kept"})
    push_run(run, "tester/model", token=TOKEN)
    assert set(hub.files("tester/model")) == before | {"mine.py"}


def test_blocks_of_another_pipeline_go(hub, cache, pipe, run):
    """They import code that is gone, too."""
    push_run(run, "tester/model", token=TOKEN)
    assert set(BLOCK_FILES) <= set(hub.files("tester/model"))
    shutil.rmtree(run / "pipeline")
    prior = PixelCNNPrior(pipe.vqvae.config.num_vq_embeddings, width=8, num_layers=2, kernel_size=3, sample_size=4)
    PixelCNNVQPipeline(pipe.vqvae, prior).save_pretrained(run / "pipeline")
    push_run(run, "tester/model", token=TOKEN)
    files = set(hub.files("tester/model"))
    assert not set(BLOCK_FILES) & files and not any("_blocks_" in name for name in files)


def test_weights_in_shards_are_replaced(hub, cache, pipe, run):
    """An index that stayed would make diffusers load the shards of the push before; other variants stay."""
    make_pipeline().save_pretrained(run / "pipeline", max_shard_size="20KB")
    push_run(run, "tester/model", token=TOKEN)
    assert any("-00001-of-" in name for name in hub.files("tester/model"))
    half = "unet/diffusion_pytorch_model.fp16.safetensors"
    hub.commit("tester/model", {half: b"half"})
    shutil.rmtree(run / "pipeline")
    pipe.save_pretrained(run / "pipeline")
    push_run(run, "tester/model", token=TOKEN)
    weights = {name for name in hub.files("tester/model") if "diffusion_pytorch_model" in name}
    assert weights == {f"unet/{WEIGHTS}", f"vqvae/{WEIGHTS}", half}
    assert torch.equal(draw(DiffusionBridgeVQPipeline.from_pretrained("tester/model", token=TOKEN)), draw(pipe))


def test_public(hub, cache, run, caplog):
    push_run(run, "tester/new", token=TOKEN, private=False)
    assert not hub.repos["tester/new"].private
    push_run(run, "tester/old", token=TOKEN)
    assert hub.repos["tester/old"].private
    push_run(run, "tester/old", token=TOKEN, private=False)
    assert not hub.repos["tester/old"].private
    with heard(caplog, *LOGGERS):
        push_run(run, "tester/old", token=TOKEN)
    assert "was public before and still is" in caplog.text and not hub.repos["tester/old"].private


def test_what_is_no_pipeline(hub, cache, run, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        push_run(tmp_path / "none", "tester/model", token=TOKEN)
    with pytest.raises(ValueError, match="isn't a repository's name"):
        push_run(run, "tester/a/b", token=TOKEN)
    index = run / "pipeline" / INDEX
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


def test_example(hub, cache, example, run, capsys):
    example("push_to_hub.py", run, "tester/model", "--license", "mit")
    assert f"Pushed: {hub.url}/tester/model" in capsys.readouterr().out and hub.repos["tester/model"].private
    with pytest.raises(SystemExit):
        example("push_to_hub.py", run / "evaluation", "tester/other")
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
        ("/commit/", "POST", {"status": 412}),
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
