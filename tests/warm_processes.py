"""
Processes of their own, forked from a server that has imported the package: each starts in a moment instead of the nine
seconds that importing takes.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CONTEXT = multiprocessing.get_context("forkserver")
# not `datasets`: it starts a thread, which a fork doesn't copy
CONTEXT.set_forkserver_preload(["pytest", "diffusion_bridge_vq.training.trainer", "warm_imports"])


def ensure_server() -> None:
    """Start the server, which finds modules where this process does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def start(work: Callable[..., None], *arguments: Any) -> Any:
    """`work(*arguments)` in a process, which is returned."""
    ensure_server()
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def launch(folder: Path, work: Callable[..., None], *arguments: Any, processes: int = 2) -> None:
    """`work(*arguments)` on each of several processes with gloo, which meet in a file of `folder`."""
    ensure_server()
    (folder / "rendezvous").unlink(missing_ok=True)
    whole = (processes, str(folder), work, *arguments)
    mp.start_processes(_process_of_several, whole, nprocs=processes, start_method="forkserver")


def _process_of_several(rank: int, world: int, folder: str, work: Callable[..., None], *arguments: Any) -> None:
    """As a launcher would start it."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in variables.items()} | {"ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    work(*arguments)
    if dist.is_initialized():  # `train` ends it itself
        dist.destroy_process_group()


class Script:
    """
    `python script *arguments`, running.

    Args:
        script (`Path`), arguments: of the command.
        cwd (`Path`, *optional*): its folder; defaults to this process's.
        variables (`Mapping[str, str]`, *optional*): of its environment, added to this process's.
        before (`Callable`, *optional*): called in the process before the script runs.

    Attributes:
        process (`multiprocessing.Process`): to be watched or stopped.
    """

    def __init__(
        self,
        script: Path,
        *arguments: Any,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.words = [str(script), *map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, **(variables or {})}
        self.process = start(_as_command, self.words, str(cwd or Path.cwd()), environment, self._folder.name, before)

    def end(self) -> subprocess.CompletedProcess[str]:
        """What it did, with its output, when it has ended by itself."""
        self.process.join()
        output = [(Path(self._folder.name) / name).read_text() for name in ("stdout", "stderr")]
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.words, self.process.exitcode, *output)


def _as_command(
    words: list[str], cwd: str, environment: Mapping[str, str], folder: str, before: Callable[[], None] | None
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()  # that of the server
    os.environ.update(environment)
    sys.argv = words
    sys.path[0:0] = [str(Path(words[0]).parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if before is not None:
        before()
    runpy.run_path(words[0], run_name="__main__")
