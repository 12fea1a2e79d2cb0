"""benchmarks/network_faults.py: the link, and what is said where network namespaces can't be made."""

import os
import runpy
import select
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "network_faults.py"
# Open until the process ends, like the thread that reads them.
SOCKETS = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(4)]


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


def make_link(pairs):
    """A link between two pairs of sockets, and the other ends of those."""
    (first, end), (second, other_end) = pairs
    for side in (first, second):
        side.settimeout(60)
    return runpy.run_path(str(SCRIPT))["Link"]([end.fileno(), other_end.fileno()]), first, second


def test_the_link_passes_and_loses():
    link, first, second = make_link(SOCKETS[:2])
    link.start()
    first.send(b"there")
    second.send(b"back")
    assert (second.recv(9), first.recv(9)) == (b"there", b"back")
    link.lose_all()
    first.send(b"lost")
    deadline = time.monotonic() + 60
    while link.dropped == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert link.dropped == 1
    link.mend()
    first.send(b"kept")
    assert second.recv(9) == b"kept" and link.dropped == 1


def test_the_link_delays(monkeypatch):
    """By a clock that only its waits move on."""
    link, first, second = make_link(SOCKETS[2:])
    clock, arrived, names = [0.0], [], link.run.__func__.__globals__

    def wait(ends, _writable, _failed, seconds):
        found = select.select(ends, [], [], 0 if seconds is not None else None)
        if not found[0]:
            clock[0] += seconds
        return found

    def write(end, packet):
        arrived.append(clock[0])
        return os.write(end, packet)

    monkeypatch.setitem(names, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setitem(names, "select", SimpleNamespace(select=wait))
    monkeypatch.setitem(names, "os", SimpleNamespace(read=os.read, write=write))
    link.delay, link.bytes_per_second = 0.1, 100
    for packet in (b"1" * 10, b"2" * 10):  # the second waits for the first to have left
        first.send(packet)
    link.start()
    assert [second.recv(99)[:1] for _ in range(2)] == [b"1", b"2"]
    assert arrived == pytest.approx([0.1 + 0.1, 2 * 0.1 + 0.1])


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
