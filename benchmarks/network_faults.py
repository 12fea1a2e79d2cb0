"""
What a run on two machines does when the network between them fails.

Two network namespaces stand for the machines; each has a launcher with one process on the CPU. A thread passes packets
between them, so that it can delay or lose them on any Linux. As root, with `ip` of iproute2:

python benchmarks/network_faults.py --output-dir outputs/network-faults

Each fault in turn: the link is slow (100 ms there and back, 10 Mbit/s), gone for 5 s, gone for good, and one side is
killed. For each: whether the run went on, or how long both sides took to end, with which error, and whether the run
could be resumed. Written as a table and to network-faults.json. Exits with 77 and the reason where namespaces can't be
made.
"""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_bridge_vq.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "accelerate_configs" / "cpu_2.yaml"
SKIPPED = 77
SIDES = ("dbvq-a", "dbvq-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
DEVICE = "dbvq"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # of linux/if_tun.h
VQVAE = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "num_vq_embeddings": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default="outputs/network-faults")
    parser.add_argument("--network-timeout", type=int, default=30, help="of the runs, in seconds")
    parser.add_argument("--steps", type=int, default=20, help="that must follow a fault which a run survives")
    parser.add_argument("--patience", type=int, default=600, help="seconds after which a run counts as hanging")
    args = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"skipped: {reason}", file=sys.stderr)
        raise SystemExit(SKIPPED)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []

    def note(result: dict[str, Any]) -> None:
        link.check()
        found.append(result)
        print(json.dumps(result), flush=True)

    with two_machines() as link:
        with Job(args, resume=False) as job:
            job.wait_for_steps(1)
            note(survive(job, "none", args.steps))
            link.delay, link.bytes_per_second = 0.05, 10e6 / 8
            note(survive(job, "100 ms and 10 Mbit/s", args.steps))
            link.mend()
            link.lose_all()
            time.sleep(5)
            link.mend()
            note(survive(job, "link gone for 5 s", args.steps))
            note(end_of(job, "link gone for good", link.lose_all))
        link.mend()
        with Job(args, resume=True) as job:
            found[-1]["resumed from"] = job.resumed_at()
            job.wait_for_steps(args.steps)
            note(end_of(job, "one side killed", job.kill_second))
        with Job(args, resume=True) as job:
            found[-1]["resumed from"] = job.resumed_at()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {_torch_version()}"
    record = {"machine": machine, "network_timeout": args.network_timeout, "faults": found}
    (args.output_dir / "network-faults.json").write_text(json.dumps(record, indent=1))
    print_table(found)


def why_not() -> str | None:
    """Why namespaces can't be made here; None if they can."""
    if subprocess.run(["which", "ip"], capture_output=True).returncode:
        return "there is no `ip`; install iproute2"
    tried = subprocess.run(["ip", "netns", "add", "dbvq-try"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "dbvq-try"], check=True)
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun can't be opened: {error.strerror}"
    return None


# ------------------------------------------------------------------------------------------------------- the network


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Link(threading.Thread):
    """
    A cable between two network devices: what one sends comes out of the other, `delay` seconds later and at most
    `bytes_per_second`, or never while all is lost. Neither device goes down.

    Args:
        ends (`list[int]`): the open devices.

    Attributes:
        dropped (`int`): packets lost so far, by a fault or a full queue.
    """

    QUEUE = 500_000  # bytes on their way, each direction; more are lost

    def __init__(self, ends: list[int]) -> None:
        super().__init__(daemon=True)
        self.ends = ends
        self.closing = False
        self.failure: OSError | None = None
        self.dropped = 0
        self.mend()

    def mend(self) -> None:
        self.delay, self.bytes_per_second, self.lost = 0.0, float("inf"), False

    def lose_all(self) -> None:
        self.lost = True

    def run(self) -> None:
        try:
            self._pass_packets()
        except OSError as error:
            if not self.closing:  # else the devices are gone
                self.failure = error

    def check(self) -> None:
        """
        Raises:
            SystemExit: packets are no longer passed, so that what was measured is of no fault that was meant.
        """
        if self.failure is not None:
            raise SystemExit(f"the link between the machines failed: {self.failure}")

    def _pass_packets(self) -> None:
        waiting: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in self.ends}
        free = dict.fromkeys(self.ends, 0.0)  # when the last packet has left
        other = dict(zip(self.ends, reversed(self.ends), strict=True))
        while True:
            due = [queue[0][0] for queue in waiting.values() if queue]
            pause = max(min(due) - time.monotonic(), 0) if due else None
            for end in select.select(self.ends, [], [], pause)[0]:
                packet, queue = os.read(end, 65_536), waiting[other[end]]
                if self.lost or sum(len(each) for _, each in queue) >= self.QUEUE:
                    self.dropped += 1
                else:
                    free[end] = max(free[end], time.monotonic()) + len(packet) / self.bytes_per_second
                    queue.append((free[end] + self.delay, packet))
            for end, queue in waiting.items():
                while queue and queue[0][0] <= time.monotonic():
                    os.write(end, queue.popleft()[1])


@contextlib.contextmanager
def two_machines() -> Iterator[Link]:
    remove_machines()
    ends: list[int] = []
    link = Link(ends)
    try:
        for number, (side, address) in enumerate(zip(SIDES, ADDRESSES, strict=True)):
            device = f"{DEVICE}{number}"
            ends.append(os.open("/dev/net/tun", os.O_RDWR))
            fcntl.ioctl(ends[-1], TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
            run("ip", "netns", "add", side)
            run("ip", "link", "set", device, "netns", side, "name", DEVICE)
            run("ip", "-n", side, "link", "set", "lo", "up")
            run("ip", "-n", side, "address", "add", f"{address}/24", "dev", DEVICE)
            run("ip", "-n", side, "link", "set", DEVICE, "up")
        link.start()
        yield link
    finally:
        link.closing = True
        remove_machines()


def remove_machines() -> None:
    for side in SIDES:
        subprocess.run(["ip", "netns", "del", side], capture_output=True)


# ----------------------------------------------------------------------------------------------------------- the run


class Job:
    """A run on both machines. Leaving the context ends it."""

    def __init__(self, args: argparse.Namespace, resume: bool) -> None:
        self.folder, self.patience = args.output_dir / "run", args.patience
        options = {
            "preset": "digits",
            "resolution": 8,
            "batch-size": 16,
            "vqvae": json.dumps(VQVAE),
            "max-train-steps": 1_000_000,
            "log-every": 1,
            "checkpoint-every": 5,
            "image-every": 0,
            "report-to": "none",
            "network-timeout": args.network_timeout,
            "output-dir": self.folder,
        }
        self.logs = [args.output_dir / f"{side}-{'resumed' if resume else 'first'}.log" for side in SIDES]
        self.sides = []
        for rank, (side, log) in enumerate(zip(SIDES, self.logs, strict=True)):
            launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
            launcher += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
            launcher += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29511"]
            script = [str(ROOT / "examples" / "train_vqvae.py"), *(f"--{k}={v}" for k, v in options.items())]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1"}
            with log.open("w") as output:
                self.sides.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", side, *launcher, *script, *(["--resume"] if resume else [])],
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for side in self.sides:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(side.pid, signal.SIGKILL)
            side.wait()
        for side in SIDES:  # workers have sessions of their own
            pids = subprocess.run(["ip", "netns", "pids", side], capture_output=True, text=True).stdout.split()
            for pid in map(int, pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def steps(self) -> int:
        """Steps done, by the log of the run."""
        records = RunFolder(self.folder).read_metrics()  # without a line that is being written
        return int(records[-1]["step"]) if records else 0

    def wait_for_steps(self, more: int) -> float:
        """Until as many more steps are done; returns the seconds."""
        goal, start = self.steps() + more, time.monotonic()
        while self.steps() < goal:
            if time.monotonic() - start > self.patience or any(side.poll() is not None for side in self.sides):
                raise SystemExit(f"the run stopped at step {self.steps()}; see {', '.join(map(str, self.logs))}")
            time.sleep(0.1)
        return time.monotonic() - start

    def resumed_at(self) -> int:
        """The step that a resumed run goes on from."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            for line in self.logs[0].read_text().splitlines():
                if line.startswith("resumed from"):
                    return int(line.split("step-")[1].split()[0])
            time.sleep(0.2)
        raise SystemExit(f"the run was not resumed; see {self.logs[0]}")

    def kill_second(self) -> None:
        """All processes of the second machine."""
        pids = subprocess.run(["ip", "netns", "pids", SIDES[1]], capture_output=True, text=True).stdout.split()
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def survive(job: Job, name: str, steps: int) -> dict[str, Any]:
    """The run does as many more steps."""
    before = job.steps()
    seconds = round(job.wait_for_steps(steps) / steps, 3)
    return {"fault": name, "outcome": "goes on", "at step": before, "seconds a step": seconds}


def end_of(job: Job, name: str, fault: Any) -> dict[str, Any]:
    """A fault that the run can't survive: when both sides end, and what they say."""
    before, start = job.steps(), time.monotonic()
    fault()
    ended: list[float | None] = [None, None]
    while None in ended and time.monotonic() - start < job.patience:
        for rank, side in enumerate(job.sides):
            if ended[rank] is None and side.poll() is not None:
                ended[rank] = round(time.monotonic() - start, 1)
        time.sleep(0.1)
    errors = []
    for log in job.logs:
        lines = [line for line in log.read_text().splitlines() if "lost the others" in line]
        errors.append(lines[-1].strip() if lines else "")
    outcome = "hangs" if None in ended else "ends"
    return {
        "fault": name,
        "outcome": outcome,
        "at step": before,
        "seconds until each side ended": ended,
        "errors": errors,
    }


def _torch_version() -> str:
    import torch

    return torch.__version__


def print_table(found: list[dict[str, Any]]) -> None:
    columns = ("fault", "outcome", "seconds a step", "seconds until each side ended", "resumed from")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for each in found:
        print(f"| {' | '.join(str(each.get(column, '')) for column in columns)} |")


if __name__ == "__main__":
    main()
