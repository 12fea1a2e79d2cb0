"""Two runs in one folder: the second is refused, and a killed one leaves no lock."""

import os
import socket
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from tiny_run import config
from warm_processes import CONTEXT, start

from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import VQConfig, train
from diffusion_bridge_vq.training import run as run_module
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock


def hold(folder: Path, kind: str, connection: Connection) -> None:
    with run_lock(RunFolder(folder)):
        if kind == "fork":
            keep_open(RunFolder(folder).lock)
        if kind == "fork" and os.fork() == 0:
            connection.recv()  # a worker that outlives the run
            os._exit(0)
        connection.send("held")
        connection.recv()


def keep_open(path: Path) -> None:
    """In processes forked from this one, too, where newer versions of filelock close theirs."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.samefile(path)]
    assert links
    for link in links:
        os.dup(int(link.name))


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds the folder; it ends when it gets a message."""
    processes = []

    def start_holder(kind: str = "plain"):
        here, there = CONTEXT.Pipe()
        process = start(hold, tmp_path, kind, there)
        processes.append(process)
        assert here.recv() == "held"
        return process, here

    yield start_holder
    for process in processes:
        process.kill()
        process.join()


def test_the_second_run_is_refused_by_name(tmp_path, holder):
    process, connection = holder()
    with (
        pytest.raises(ValueError, match=f"process {process.pid} on {socket.gethostname()}.*another `output_dir`"),
        run_lock(RunFolder(tmp_path), wait_seconds=0),
    ):
        pass
    connection.send("end")
    with run_lock(RunFolder(tmp_path), wait_seconds=5):
        assert str(os.getpid()) in RunFolder(tmp_path).lock_owner.read_text()
    assert not RunFolder(tmp_path).lock_owner.exists()


def test_a_killed_run_leaves_no_lock(tmp_path, holder):
    process, _ = holder()
    process.kill()
    process.join()
    assert RunFolder(tmp_path).lock_owner.exists()  # nobody removed it
    with run_lock(RunFolder(tmp_path), wait_seconds=0):
        pass


def test_workers_of_a_killed_run_are_waited_for(tmp_path, holder):
    process, connection = holder("fork")
    process.kill()
    process.join()
    with pytest.raises(ValueError, match="Another run writes"), run_lock(RunFolder(tmp_path), wait_seconds=0):
        pass
    connection.send("end")
    with run_lock(RunFolder(tmp_path), wait_seconds=30):
        pass


def test_an_exception_releases_the_folder(tmp_path):
    with pytest.raises(RuntimeError), run_lock(RunFolder(tmp_path)):
        raise RuntimeError
    with run_lock(RunFolder(tmp_path), wait_seconds=0):
        pass


def test_a_run_that_ends_while_another_waits_keeps_its_result(tmp_path, monkeypatch):
    folder, held, asked = RunFolder(tmp_path), threading.Event(), threading.Event()

    def other_run() -> None:
        with run_lock(folder):
            held.set()
            asked.wait(60)
            folder.pipeline.mkdir()

    def ask(folder):
        asked.set()
        return run_lock(folder)

    monkeypatch.setattr(run_module, "run_lock", ask)
    thread = threading.Thread(target=other_run)
    thread.start()
    held.wait()
    with pytest.raises(ValueError, match="already holds pipeline"):
        train(config(VQConfig, tmp_path))
    thread.join()
    assert not folder.metrics.exists()
