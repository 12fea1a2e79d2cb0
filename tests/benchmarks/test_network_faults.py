"""benchmarks/network_faults.py: the link, and what is said where network namespaces can't be made."""

import os
import runpy
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "network_faults.py"
# Open until the process ends, like the thread that reads them.
SOCKETS = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]


@pytest.mark.parametrize(
    ("missing", "reason"), [("which", "there is no `ip`; install iproute2"), ("netns", "Operation not permitted")]
)
def test_the_reason_is_said(missing, reason, monkeypatch, capsys, tmp_path):
    module = runpy.run_path(str(SCRIPT))

    def run(command, **_):
        failed = missing in command
        return SimpleNamespace(returncode=int(failed), stderr="Operation not permitted\n")

    monkeypatch.setattr(module["subprocess"], "run", run)
    monkeypatch.setattr("sys.argv", ["network_faults.py", "--output-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        module["main"]()
    assert ended.value.code == 77 and reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_link_passes_delays_and_loses():
    (first, end), (second, other_end) = SOCKETS
    for side in (first, second):
        side.settimeout(10)
    link = runpy.run_path(str(SCRIPT))["Link"]([end.fileno(), other_end.fileno()])
    link.start()
    first.send(b"there")
    second.send(b"back")
    assert (second.recv(9), first.recv(9)) == (b"there", b"back")
    link.lose_all()
    first.send(b"lost")
    time.sleep(0.2)
    link.mend()
    link.delay, link.bytes_per_second = 0.1, 100
    start = time.monotonic()
    for packet in (b"1" * 10, b"2" * 10):  # the second waits for the first to have left
        first.send(packet)
    assert [second.recv(99)[:1] for _ in range(2)] == [b"1", b"2"]
    assert time.monotonic() - start >= 0.1 + 2 * 0.1


def test_a_link_that_fails_is_said(tmp_path):
    end = os.open(tmp_path, os.O_RDONLY)  # a folder can't be read as a device
    link = runpy.run_path(str(SCRIPT))["Link"]([end, end])
    link.check()
    link.run()
    with pytest.raises(SystemExit, match=r"the link between the machines failed: .*Is a directory"):
        link.check()
    os.close(end)


def test_a_line_that_is_being_written_is_no_step(tmp_path):
    job = object.__new__(runpy.run_path(str(SCRIPT))["Job"])
    job.folder = tmp_path
    assert job.steps() == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"step": 5}\n{"step"')
    assert job.steps() == 5
