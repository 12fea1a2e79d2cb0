"""Writing checkpoints: what stays when the writer is killed at any operation, or the disk is full."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_in_memory import FILES, Run, as_safetensors_says, flip, same

from diffusion_bridge_vq.training.fault_tolerance import checkpoint
from diffusion_bridge_vq.training.fault_tolerance.checkpoint import list_checkpoints, load_newest

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
import test_checkpoint_writing
test_checkpoint_writing.fill_a_disk(Path({folder!r}))
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
