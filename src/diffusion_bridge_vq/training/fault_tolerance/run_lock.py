"""One run per folder: two that write into the same one would mix their metrics and remove each other's checkpoints."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ...run_folder import RunFolder

# The workers of a killed run hold its lock until they notice that it is gone, which takes them five seconds.
_WAIT_SECONDS = 10.0


@contextmanager
def run_lock(run: RunFolder, wait_seconds: float = _WAIT_SECONDS) -> Iterator[None]:
    """
    Hold the folder of a run. The operating system releases the lock whenever the process ends, so no lock is stale.

    Args:
        run ([`RunFolder`]): is created if it doesn't exist.
        wait_seconds (`float`, *optional*, defaults to 10): how long to wait for another run to end.

    Raises:
        ValueError: another run holds the folder; names its process and host.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.lock)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise ValueError(
            f"Another run writes into {run.path}{_describe_owner(run.lock_owner)}. Wait until it ends, stop it, or "
            "give another `output_dir`."
        ) from None
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        run.lock_owner.write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        run.lock_owner.unlink(missing_ok=True)
        lock.release()


def _describe_owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f": process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just starting, or just ending
        return ""
