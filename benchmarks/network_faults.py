"""
What a run on two machines does when the network between them fails.

Two network namespaces joined by a virtual link stand for the machines; each has a launcher with one process on the
CPU. As root, with `ip` and `tc` of iproute2:

python benchmarks/network_faults.py --output-dir outputs/network-faults

Each fault in turn: the link is slow, gone for 5 s, gone for good, and one side is killed. For each: whether the run
went on, or how long both sides took to end, with which error, and whether the run could be resumed. Written as a table
and to network-faults.json. Exits with 77 and the reason where namespaces can't be made.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "accelerate_configs" / "cpu_2.yaml"
SKIPPED = 77
SIDES = ("dbvq-a", "dbvq-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
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
    with two_machines():
        job = Job(args, resume=False)
        with job:
            job.wait_for_steps(args.steps)
            for fault, seconds in ((slow_down, 0), (cut_for_seconds, 5)):
                found.append(survive(job, fault, seconds, args.steps))
                print(json.dumps(found[-1]), flush=True)
            found.append(end_of(job, "link gone for good", cut))
        print(json.dumps(found[-1]), flush=True)
        mend()
        job = Job(args, resume=True)
        with job:
            found[-1]["resumed from"] = job.resumed_at()
            job.wait_for_steps(args.steps)
            found.append(end_of(job, "one side killed", job.kill_second))
        print(json.dumps(found[-1]), flush=True)
        job = Job(args, resume=True)
        with job:
            found[-1]["resumed from"] = job.resumed_at()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {_torch_version()}"
    record = {"machine": machine, "network_timeout": args.network_timeout, "faults": found}
    (args.output_dir / "network-faults.json").write_text(json.dumps(record, indent=1))
    print_table(found)


def why_not() -> str | None:
    """Why namespaces can't be made here; None if they can."""
    for program in ("ip", "tc"):
        if subprocess.run(["which", program], capture_output=True).returncode:
            return f"there is no `{program}`; install iproute2"
    tried = subprocess.run(["ip", "netns", "add", "dbvq-try"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "dbvq-try"], check=True)
    return None


# ------------------------------------------------------------------------------------------------------- the network


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_machines() -> Iterator[None]:
    remove_machines()
    try:
        for side in SIDES:
            run("ip", "netns", "add", side)
            run("ip", "-n", side, "link", "set", "lo", "up")
        run(
            "ip", "link", "add", "veth0", "netns", SIDES[0], "type", "veth", "peer", "name", "veth0", "netns", SIDES[1]
        )
        for side, address in zip(SIDES, ADDRESSES, strict=True):
            run("ip", "-n", side, "address", "add", f"{address}/24", "dev", "veth0")
            run("ip", "-n", side, "link", "set", "veth0", "up")
        yield
    finally:
        remove_machines()


def remove_machines() -> None:
    for side in SIDES:
        subprocess.run(["ip", "netns", "del", side], capture_output=True)


def shape(*discipline: str) -> bool:
    """Whether the kernel has this queueing discipline for what both sides send."""
    done = [
        subprocess.run(
            ["ip", "netns", "exec", side, "tc", "qdisc", "replace", "dev", "veth0", "root", *discipline],
            capture_output=True,
        )
        for side in SIDES
    ]
    return not any(each.returncode for each in done)


def cut() -> None:
    """Everything is lost, as if a cable between two switches was pulled: no side's own link goes down."""
    if not (shape("blackhole") or shape("netem", "loss", "100%")):
        raise SystemExit("the kernel can neither drop packets (blackhole) nor lose them (netem)")


def cut_for_seconds() -> str:
    cut()
    return "link gone for 5 s"


def slow_down() -> str:
    """What the kernel could do."""
    if shape("netem", "delay", "50ms", "rate", "10mbit"):  # each way
        return "100 ms and 10 Mbit/s"
    if shape("tbf", "rate", "10mbit", "burst", "32kbit", "latency", "400ms"):
        return "10 Mbit/s, without delay: the kernel has no netem"
    raise SystemExit("the kernel can't limit the rate of a link (netem, tbf)")


def mend() -> None:
    for side in SIDES:
        run("ip", "netns", "exec", side, "tc", "qdisc", "del", "dev", "veth0", "root")


# ----------------------------------------------------------------------------------------------------------- the run


class Job:
    """A run on both machines. Leaving the context ends it."""

    def __init__(self, args: argparse.Namespace, resume: bool) -> None:
        self.folder, self.patience = args.output_dir / "run", args.patience
        self.steps_before = self.steps()
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
            environment = os.environ | {"GLOO_SOCKET_IFNAME": "veth0", "OMP_NUM_THREADS": "1"}
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
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

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


def survive(job: Job, fault: Any, seconds: float, steps: int) -> dict[str, Any]:
    """A fault that ends after `seconds`, or after `steps` steps; the run must do as many after it."""
    before = job.steps()
    name = fault()
    time.sleep(seconds)
    during = job.wait_for_steps(steps) if not seconds else None
    mend()
    after = job.wait_for_steps(steps)
    found: dict[str, Any] = {"fault": name, "outcome": "goes on", "at step": before}
    if during is not None:
        found["seconds a step, slow"] = round(during / steps, 3)
    return found | {"seconds a step, after": round(after / steps, 3)}


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
    print("| fault | outcome | seconds until the sides ended | resumed from |")
    print("| --- | --- | --- | --- |")
    for each in found:
        ended = each.get("seconds until each side ended", "")
        print(f"| {each['fault']} | {each['outcome']} | {ended} | {each.get('resumed from', '')} |")


if __name__ == "__main__":
    main()
