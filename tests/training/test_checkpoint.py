"""
Checkpoints against what was in memory when they were written: damaged files, writers killed at every operation, full
disks, two processes.
"""

import ast
import contextlib
import errno
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing as mp
from accelerate import Accelerator
from process_work import process
from safetensors import SafetensorError
from test_loop import config, state
from torch import nn

import diffusion_bridge_vq
from diffusion_bridge_vq.training import VQConfig, checkpoint, train
from diffusion_bridge_vq.training.checkpoint import list_checkpoints, load_newest, save_checkpoint

FILES = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "random-0.safetensors",
    "state.json",
    "manifest.json",
)
mp.get_context("forkserver").set_forkserver_preload(["diffusion_bridge_vq.training.loop", "diffusion_bridge_vq"])


class Run:
    """Two modules and an optimiser that move by a step at a time, and what they were at each of them."""

    def __init__(self, folder: Path, features: int = 4):
        self.folder, self.features, self.accelerator = folder, features, Accelerator(cpu=True)
        self.modules = {"model": nn.Linear(features, 3), "ema": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))}
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.1)
        self.seen: dict[int, dict] = {}

    def step(self, step: int) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = 0.1 / (step + 1)
            for p in parameters["params"]:
                p.grad = torch.randn_like(p)
        self.modules["ema"][1].running_mean += step
        self.optimizer.step()
        self.seen[step] = self.now()

    def now(self) -> dict:
        modules = {name: deepcopy(module.state_dict()) for name, module in self.modules.items()}
        packed = self.optimizer.state_dict()
        groups = [{k: list(v) if k == "betas" else v for k, v in group.items()} for group in packed["param_groups"]]
        return modules | {
            "moments": deepcopy(packed["state"]),
            "groups": deepcopy(groups),
            "random": torch.get_rng_state(),
        }

    def save(self, step: int, keep: int = 9) -> Path:
        self.step(step)
        state = {"step": step, "epoch": step // 3, "note": f"of step {step}"}
        return save_checkpoint(self.folder, self.accelerator, self.modules, self.optimizer, state, keep)

    def load(self, folder: Path | None = None) -> tuple[int, dict]:
        """Into modules that are elsewhere; the step of what was loaded, which has to be all that there was then."""
        fresh = Run(folder or self.folder, self.features)
        torch.manual_seed(99)
        fresh.step(0)
        path, state = load_newest(fresh.folder, fresh.accelerator, fresh.modules, fresh.optimizer)
        step = state["step"]
        assert path.name.startswith(f"step-{step:08d}")
        assert state == {"step": step, "epoch": step // 3, "note": f"of step {step}"}
        assert_equal(fresh.now(), self.seen[step])
        return step, state


def assert_equal(a, b) -> None:
    """Bit for bit, through dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b


def same(a, b) -> bool:
    try:
        assert_equal(a, b)
    except AssertionError:
        return False
    return True


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


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


def test_no_bit_of_the_manifest_is_trusted_unseen(tmp_path):
    """Every byte changed in turn: it is the manifest that is named, and no file takes the blame."""
    run = Run(tmp_path)
    run.save(1)
    path = run.save(2) / "manifest.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        flip(path, position)
        (damage,) = checkpoint._damage(path.parent)
        assert damage.startswith("manifest.json")
        path.write_bytes(whole)
    assert checkpoint._damage(path.parent) == []


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
    """A folder stands where a file was."""
    run = Run(tmp_path)
    run.save(1)
    for name in ("model.safetensors", "manifest.json"):
        path = run.save(2) / name
        path.unlink()
        path.mkdir()
        with pytest.warns(UserWarning, match=f"{name} (can't be read: Is a directory|has .* bytes, not)"):
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


# --------------------------------------------------------------------------------------------------------- writing


def test_keep(tmp_path):
    run = Run(tmp_path)
    for step in range(8, 13):  # across a change in the number of digits
        run.save(step, keep=2)
        expected = [f"step-{n:08d}" for n in (step - 1, step) if n >= 8]
        assert sorted(os.listdir(tmp_path)) == expected
    # a damaged one that lies ahead neither counts nor is taken for newer work
    flip(tmp_path / "step-00000012" / "model.safetensors", -1)
    with pytest.warns(UserWarning, match="Using step-00000011"):
        run.load()
    run.save(10, keep=1)
    assert sorted(os.listdir(tmp_path)) == [f"step-{n:08d}" for n in (10, 11, 12)]
    run.save(11, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["step-00000011", "step-00000012"]
    run.save(12, keep=1)
    assert os.listdir(tmp_path) == ["step-00000012"] and run.load()[0] == 12


class Killed(BaseException):
    pass


OPERATIONS = [
    (os, "fsync"),
    (os, "replace"),
    (os, "rmdir"),
    (shutil, "rmtree"),
    (checkpoint, "save_file"),
    (os, "mkdir"),
]


def _announced(name, operation, before):
    def announced(*arguments, **keywords):
        before(name, arguments)
        return operation(*arguments, **keywords)

    return announced


@contextlib.contextmanager
def watched(before):
    """`before(name, arguments)` runs before each operation of a writer."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in OPERATIONS:
            patch.setattr(module, name, _announced(name, getattr(module, name), before))
        yield


@pytest.mark.parametrize("occasion", ["next", "first", "replacing"])
def test_a_writer_killed_at_any_operation_leaves_old_or_new(tmp_path, occasion):
    """Stopped before its k-th operation for all k: one of the two is there, whole; the next save clears up."""
    start = Run(tmp_path / "start")
    if occasion != "first":
        start.save(1)
        start.save(2)
    step = {"first": 1, "next": 3, "replacing": 2}[occasion]
    found: list[str | None] = []
    for k in itertools.count():
        run = Run(tmp_path / f"{k}")
        if start.folder.exists():
            shutil.copytree(start.folder, run.folder)
        operations = itertools.count()

        def die(name, arguments, operations=operations, k=k):
            if next(operations) == k:
                raise Killed

        killed = False
        with watched(die):
            try:
                run.save(step, keep=1)
            except Killed:
                killed = True
        if list_checkpoints(run.folder):
            fresh = Run(run.folder)
            load_newest(run.folder, fresh.accelerator, fresh.modules, fresh.optimizer)
            known = {"new": run.seen[step], "old": start.seen.get(2)}
            found.append(next(name for name, then in known.items() if same(fresh.now(), then)))
        else:
            found.append(None)
        run.save(step + 1, keep=1)
        assert os.listdir(run.folder) == [f"step-{step + 1:08d}"] and run.load()[0] == step + 1
        if not killed:
            break
    turn = found.index("new")
    assert found == [None if occasion == "first" else "old"] * turn + ["new"] * (len(found) - turn)
    assert turn > 5 and len(found) > turn + 1  # there is something to do on either side


@pytest.mark.parametrize("occasion", ["next", "replacing"])
def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, occasion):
    """A power cut loses what wasn't flushed; by inode, each file and its folder are, and with all that is in them."""
    run = Run(tmp_path)
    run.save(1)
    step = {"next": 2, "replacing": 1}[occasion]
    flushed: dict[int, bytes | list[str]] = {}
    renamed, removed = [], []

    def follow(name, arguments):
        if name == "fsync":
            node = os.fstat(arguments[0]).st_ino
            path = next(p for p in (tmp_path, *tmp_path.rglob("*"), tmp_path.parent) if p.stat().st_ino == node)
            flushed[node] = sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()
        elif name == "replace" and str(arguments[1]).endswith(f"step-{step:08d}"):
            folder = Path(arguments[0])
            renamed.append({p.name for p in folder.iterdir()})
            assert flushed[folder.stat().st_ino] == sorted(FILES)
            for path in folder.iterdir():
                assert flushed[path.stat().st_ino] == path.read_bytes(), path.name
            flushed.clear()
        elif name == "rmtree":  # the name of the new one is on the disk before an old one goes
            removed.append(flushed.get(tmp_path.stat().st_ino))

    with watched(follow):
        run.save(step, keep=1)
    assert renamed == [set(FILES)]
    assert len(removed) == 1 and f"step-{step:08d}" in removed[0]


def test_leftovers_go_at_the_next_save(tmp_path):
    run = Run(tmp_path)
    run.save(1)
    for name in ("step-00000002.partial", "step-00000001.replaced", "step-00000007.partial"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / "notes").mkdir()  # not ours
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert run.load()[0] == 1
    run.save(2)
    assert sorted(os.listdir(tmp_path)) == ["notes", "step-00000001", "step-00000002"]
    os.rename(tmp_path / "step-00000002", tmp_path / "step-00000002.replaced")  # killed between two renames
    assert run.load()[0] == 2
    run.save(3)
    assert sorted(os.listdir(tmp_path)) == ["notes", "step-00000001", "step-00000002.replaced", "step-00000003"]
    run.save(2)
    assert sorted(os.listdir(tmp_path)) == ["notes", "step-00000001", "step-00000002", "step-00000003"]


# ------------------------------------------------------------------------------------------------------- full disks


def as_safetensors_says(code: int) -> SafetensorError:
    return SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("name", FILES)
def test_a_failed_write_says_so_and_gives_the_space_back(tmp_path, monkeypatch, name, code):
    run = Run(tmp_path)
    run.save(1)
    save_file, write_bytes, fsync = checkpoint.save_file, Path.write_bytes, os.fsync

    def failing_save(tensors, path):
        if path.name == name:
            raise as_safetensors_says(code)
        save_file(tensors, path)

    def failing_write(path, content):
        if path.name == name:
            write_bytes(path, content[:10])
            raise OSError(code, os.strerror(code))  # as write(2) and close(2): without a name
        return write_bytes(path, content)

    monkeypatch.setattr(checkpoint, "save_file", failing_save)
    monkeypatch.setattr(Path, "write_bytes", failing_write)
    with pytest.raises(OSError) as caught:
        run.save(2)
    assert caught.value.errno == code
    text = str(caught.value)
    assert f"step-00000002 couldn't be written: {os.strerror(code)} ({tmp_path}/step-00000002.partial/{name})" in text
    assert f"The last good checkpoint, {tmp_path}/step-00000001, is untouched." in text and "`resume`" in text
    full = code != errno.EIO
    assert ("MB are free" in text) == ("keep_checkpoints" in text) == full
    if full:
        size = sum(p.stat().st_size for p in (tmp_path / "step-00000001").iterdir())
        needed = float(re.search(r"takes ([\d.]+) MB", text)[1])
        assert abs(needed - size / 1e6) <= 0.06
    assert os.listdir(tmp_path) == ["step-00000001"]
    monkeypatch.undo()
    assert run.load()[0] == 1

    def failing_flush(descriptor):  # network file systems find out late
        raise OSError(code, os.strerror(code))

    (tmp_path / "step-00000001" / "state.json").unlink()
    monkeypatch.setattr(os, "fsync", failing_flush)
    with pytest.raises(OSError, match=r"model.safetensors\).*no whole checkpoint before it.*start the run again"):
        run.save(3)
    monkeypatch.setattr(os, "fsync", fsync)


FULL_DISK = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
import test_checkpoint
test_checkpoint.fill_a_disk(Path({folder!r}))
"""


def fill_a_disk(folder: Path) -> None:
    """On a file system of 400 kB: a second checkpoint, with less and less room for it."""
    run = Run(folder / "checkpoints", features=4000)
    first = run.save(1)
    kept = {p.name: p.read_bytes() for p in first.iterdir()}
    size = sum(map(len, kept.values()))
    full = set()
    for room in range(0, 2 * size, 4096):
        ballast = folder / "ballast"
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        ballast.write_bytes(bytes(free - room))
        try:
            run.save(2)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            full.add(re.search(r"partial(?:/([\w.-]+))?\)", str(error))[1])
            assert "step-00000001, is untouched" in str(error)
            assert float(re.search(r"([\d.]+) MB are free", str(error))[1]) == round(room / 1e6, 1)
        else:
            break
        ballast.unlink()
        assert os.listdir(run.folder) == ["step-00000001"]
        assert {p.name: p.read_bytes() for p in first.iterdir()} == kept
        assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize == free  # the space is given back
    assert run.load()[0] == 2
    print(json.dumps(sorted(str(name) for name in full)))


@pytest.mark.slow
def test_a_really_full_disk(tmp_path):
    """A tmpfs in a mount namespace of its own: it goes with its process."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=400k small {folder}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs in a namespace isn't permitted here")
    script = FULL_DISK.format(path=sys.path, folder=str(folder))
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && "$0" -c "$1"', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    full = json.loads(done.stdout.splitlines()[-1])
    # the manifest and the states are small: which of them hits the end depends on the sizes of blocks
    assert {"model.safetensors", "optimizer.safetensors"} <= set(full) <= {*FILES, "None"}


# ---------------------------------------------------------------------------------------------------- two processes


def on_two(work, folder: Path) -> None:
    folder.mkdir()
    mp.start_processes(process, (2, str(folder), work, folder), nprocs=2, start_method="forkserver")


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


def test_another_number_of_processes_is_refused(tmp_path):
    on_two(save_one, tmp_path / "two")
    run = Run(tmp_path / "two" / "checkpoints")
    assert set(os.listdir(run.folder / "step-00000001")) == {*FILES, "random-1.safetensors"}
    before = run.now()
    with pytest.raises(ValueError, match=r"on 2 processes, this one has 1.*number of processes"):
        load_newest(run.folder, run.accelerator, run.modules, run.optimizer)
    assert_equal(run.now(), before)


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
    """But for one peer's weights, which torch is told to read as tensors alone."""
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
