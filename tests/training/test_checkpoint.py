"""Checkpoints against what was in memory when they were written: damaged files, two processes, no pickle."""

import ast
import errno
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed
from run_in_memory import FILES, Run, as_safetensors_says, assert_equal, flip
from safetensors.torch import load_file
from tiny_run import small_config as config
from tiny_run import state
from torch import nn
from warm_processes import launch

import diffusion_bridge_vq
from diffusion_bridge_vq.training import VQConfig, train
from diffusion_bridge_vq.training.fault_tolerance import checkpoint
from diffusion_bridge_vq.training.fault_tolerance.checkpoint import find_damage, load_newest

# ---------------------------------------------------------------------------------------------------------- damage

DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "first byte": lambda path: flip(path, 0),
    "middle byte": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -1),
    "removed": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
}
SAYS = {"truncated": "bytes, not", "longer": "bytes, not", "removed": "is missing", "emptied": "0 bytes, not"}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, name):
    run = Run(tmp_path / "whole")
    run.save(1)
    assert {p.name for p in run.save(2).iterdir()} == set(FILES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.load()[0] == 2
    for damage, change in DAMAGES.items():
        damaged = tmp_path / damage
        shutil.copytree(run.folder, damaged)
        change(damaged / "step-00000002" / name)
        says = "manifest.json (is missing|isn't|doesn't match)" if name == "manifest.json" else None
        says = says or rf"{re.escape(name)} .*{SAYS.get(damage, 'match its SHA-256')}"
        with pytest.warns(UserWarning, match=rf"step-00000002 \({says}.*Using step-00000001"):
            assert run.load(damaged)[0] == 1


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    os.mkfifo(tmp_path / "step-00000001" / "manifest.json")
    assert find_damage(tmp_path / "step-00000001") == ["manifest.json isn't a regular file"]


def test_no_bit_of_the_manifest_is_trusted_unseen(tmp_path):
    """Every byte changed in turn: it is the manifest that is named, and no file takes the blame."""
    run = Run(tmp_path)
    run.save(1)
    path = run.save(2) / "manifest.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        flip(path, position)
        (damage,) = checkpoint.find_damage(path.parent)
        assert damage.startswith("manifest.json")
        path.write_bytes(whole)
    assert checkpoint.find_damage(path.parent) == []


def test_none_whole_names_all_and_loads_nothing(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.save(step)
    (tmp_path / "step-00000001" / "manifest.json").unlink()  # as before there were manifests
    (tmp_path / "step-00000002" / "state.json").unlink()
    flip(tmp_path / "step-00000003" / "ema.safetensors", -1)
    flip(tmp_path / "step-00000003" / "model.safetensors", -1)
    torch.manual_seed(5)
    before = run.now()
    with pytest.raises(ValueError) as error:
        load_newest(tmp_path, run.accelerator, run.modules, run.optimizer)
    for part in (
        "step-00000003 (ema.safetensors doesn't match its SHA-256, model.safetensors doesn't match its SHA-256)",
        "step-00000002 (state.json is missing)",
        "step-00000001 (manifest.json is missing: no manifest",
    ):
        assert part in str(error.value)
    assert_equal(run.now(), before)
    for folder in (tmp_path / "nothing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=f"There is no checkpoint in {folder} to resume from"):
            load_newest(folder, run.accelerator, run.modules, run.optimizer)


def test_what_cannot_be_read_is_passed_over(tmp_path):
    """A folder is where a file was."""
    run = Run(tmp_path)
    run.save(1)
    for name in ("model.safetensors", "manifest.json"):
        path = run.save(2) / name
        path.unlink()
        path.mkdir()
        with pytest.warns(UserWarning, match=f"{name} (isn't a regular file|has .* bytes, not)"):
            assert run.load()[0] == 1


def test_another_model_is_refused_and_not_passed_over(tmp_path):
    run = Run(tmp_path)
    run.save(1)
    run.save(2)
    other = Run(tmp_path, features=5)
    with pytest.raises(ValueError, match=r"(?s)step-00000002 doesn't fit this model.*size mismatch"):
        load_newest(tmp_path, other.accelerator, other.modules, other.optimizer)
    run.modules["best"] = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"step-00000002 doesn't fit this model.*best.safetensors"):
        load_newest(tmp_path, run.accelerator, run.modules, run.optimizer)
    del run.modules["best"], run.modules["ema"]
    fewer = torch.optim.AdamW(run.modules["model"].parameters())
    with pytest.raises(ValueError, match="step-00000002 doesn't fit this model"):
        load_newest(tmp_path, run.accelerator, run.modules, fewer)


def test_a_run_goes_on_from_the_one_before_a_damaged_one(tmp_path):
    """Through `train`: the end is bit for bit that of the run that nothing happened to."""
    settings = {"max_train_steps": 6, "checkpoint_every": 2, "keep_checkpoints": 3}
    train(config(VQConfig, tmp_path / "whole", **settings))
    checkpoints = tmp_path / "damaged" / "checkpoints"
    shutil.copytree(tmp_path / "whole" / "checkpoints", checkpoints)
    for name, change in zip(("optimizer", "ema"), (DAMAGES["truncated"], DAMAGES["middle byte"]), strict=True):
        change(checkpoints / f"step-0000000{4 if name == 'optimizer' else 6}" / f"{name}.safetensors")
    with pytest.warns(UserWarning, match=r"step-00000006 \(ema.*step-00000004 \(optimizer.*Using step-00000002"):
        train(config(VQConfig, tmp_path / "damaged", resume=True, **settings))
    assert [p.name for p in sorted(checkpoints.iterdir())] == [f"step-0000000{n}" for n in (2, 4, 6)]
    for path in (Path(f"step-0000000{step}") / name for step in (4, 6) for name in FILES):
        assert (checkpoints / path).read_bytes() == (tmp_path / "whole" / "checkpoints" / path).read_bytes(), path
    assert not torch.equal(*(state(tmp_path / "whole", n, "model")["vqvae.encoder.conv_in.weight"] for n in (4, 6)))


# ---------------------------------------------------------------------------------------------------- two processes


def on_two(work, folder: Path) -> None:
    folder.mkdir()
    launch(folder, work, folder)


def everybody_learns_of_it(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    run = Run(folder / "checkpoints")
    run.save(1)
    save_file = checkpoint.save_file
    if rank == 0:

        def full(tensors, path):
            if path.name == "ema.safetensors":
                raise as_safetensors_says(errno.ENOSPC)
            save_file(tensors, path)

        checkpoint.save_file = full
    with pytest.raises(OSError, match=r"ema.safetensors.*step-00000001, is untouched") as caught:
        run.save(2)
    assert caught.value.errno == errno.ENOSPC
    checkpoint.save_file = save_file
    run.save(3)
    torch.distributed.barrier()
    if rank == 0:
        (folder / "checkpoints" / "step-00000003" / "random-1.safetensors").unlink()
    torch.distributed.barrier()
    # each has its own random state back; both their own module, here those of the main process
    expected = run.seen[1]
    torch.manual_seed(7)
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        path, state = load_newest(run.folder, run.accelerator, run.modules, run.optimizer)
    said = [str(w.message) for w in caught_warnings if "random-1.safetensors is missing" in str(w.message)]
    assert len(said) == (1 if rank == 0 else 0)
    assert path.name == "step-00000001" and state["step"] == 1
    assert torch.equal(torch.get_rng_state(), expected["random"])
    own = torch.equal(run.modules["model"].weight, expected["model"]["weight"])
    assert own == (rank == 0)
    torch.distributed.barrier()
    if rank == 0:
        shutil.rmtree(run.folder)
    torch.distributed.barrier()
    with pytest.raises(ValueError, match="There is no checkpoint"):
        load_newest(run.folder, run.accelerator, run.modules, run.optimizer)
    (folder / f"passed-{rank}").touch()


def test_a_failure_of_the_main_process_reaches_the_other_and_both_load_the_same(tmp_path):
    on_two(everybody_learns_of_it, tmp_path / "two")
    assert {"passed-0", "passed-1"} <= set(os.listdir(tmp_path / "two"))


def save_one(folder: Path) -> None:
    Run(folder / "checkpoints").save(1)


def test_one_process_takes_over_from_two(tmp_path):
    on_two(save_one, tmp_path / "two")
    run = Run(tmp_path / "two" / "checkpoints")
    assert set(os.listdir(run.folder / "step-00000001")) == {*FILES, "random-1.safetensors"}
    _, resumed = load_newest(run.folder, run.accelerator, run.modules, run.optimizer)
    saved = load_file(run.folder / "step-00000001" / "random-0.safetensors")
    assert resumed["writers"] == 2 and torch.equal(torch.get_rng_state(), saved["cpu"])


# ------------------------------------------------------------------------------------------------------- no pickle


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickled")

    for module, names in (
        (torch, ("save", "load")),
        (pickle, ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    run = Run(tmp_path)
    saved = run.save(1)
    monkeypatch.setattr(Run, "now", lambda self: None)  # deepcopy needs no pickle, but may
    fresh = Run(tmp_path)
    load_newest(tmp_path, fresh.accelerator, fresh.modules, fresh.optimizer)
    assert torch.equal(fresh.modules["model"].weight, run.modules["model"].weight)
    assert {p.suffix for p in saved.iterdir()} == {".safetensors", ".json"}


def test_the_package_calls_no_pickle():
    """But for one peer's weights, which torch is asked to read as tensors alone."""
    sources = list(Path(diffusion_bridge_vq.__file__).parent.rglob("*.py"))
    assert len(sources) > 20
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                assert not {"pickle", "cPickle", "dill", "joblib", "shelve"} & modules, source
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                assert not call.startswith("torch.save("), source
                assert not call.startswith("torch.load(") or "weights_only=True" in call, source
