"""Runs on two processes as a user launches them (`accelerate launch`, gloo, CPU), and how they end when one dies."""

import json
from collections.abc import Iterator
from pathlib import Path

import process_work
import psutil
import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from process_results import CONFIGS, ROOT, accelerate, ended
from tiny_run import records

from diffusion_bridge_vq import GumbelVQModel

pytestmark = pytest.mark.slow


class FatalRun:
    """
    A launched run in which process 1 dies, see `process_work.main`.

    Attributes:
        folder (`Path`): where each process leaves its pid before the fatal batch.
        launched (`Script`): the launcher.
    """

    def __init__(self, fault: str, folder: Path):
        self.folder, self.launched = folder, accelerate(process_work.__file__, fault, str(folder))

    def pids(self) -> list[int]:
        files = [self.folder / f"pid-{rank}" for rank in range(2)]
        return [int(path.read_text()) for path in files if path.exists() and path.read_text()]


@pytest.fixture(scope="module", autouse=True)
def hanging(tmp_path_factory) -> Iterator[FatalRun]:
    """Its launcher waits for half a minute before it kills: time for the other tests."""
    run = FatalRun("signal, the other hangs", tmp_path_factory.mktemp("hanging"))
    yield run
    run.launched.process.join(300)


def test_the_configurations_are_accelerates():
    """Every file, read by what `accelerate launch` reads it with; several processes, and no setting left to guess."""
    found = {path.name: load_config_from_file(str(path)) for path in CONFIGS.glob("*.yaml")}
    assert found.keys() == {"cpu_2.yaml", "multi_gpu.yaml", "multi_node.yaml", "fsdp.yaml", "deepspeed.yaml"}
    for name, config in found.items():
        engine = {"fsdp.yaml": DistributedType.FSDP, "deepspeed.yaml": DistributedType.DEEPSPEED}
        assert isinstance(config, ClusterConfig)
        assert config.distributed_type == engine.get(name, DistributedType.MULTI_GPU)
        assert config.num_processes % config.num_machines == 0 and config.num_processes > 1
    assert {name for name, config in found.items() if config.use_cpu} == {"cpu_2.yaml"}
    table = (ROOT / "docs" / "how-to" / "several-processes.md").read_text()
    assert all(f"`{name}`" in table for name in found)


def test_the_command_line_trains_on_two_processes(tmp_path):
    """One run, not two: one line per step, images of both processes, and what the next stage needs."""
    config = process_work.configure("vq", tmp_path)
    names = (
        "split",
        "resolution",
        "batch_size",
        "max_train_steps",
        "log_every",
        "checkpoint_every",
        "image_every",
        "report_to",
    )
    options = [f"--{name}={getattr(config, name)}" for name in (*names, "output_dir")]
    script = str(ROOT / "examples" / "train_vqvae.py")
    done = ended(accelerate(script, *options, f"--vqvae={json.dumps(config.vqvae)}"), 600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [r["step"] for r in records(tmp_path)] == [4, 8, 12, 16, 20, 24]
    assert {"random-0.safetensors", "random-1.safetensors"} <= {
        path.name for path in (tmp_path / "checkpoints" / "step-00000024").iterdir()
    }
    GumbelVQModel.from_pretrained(tmp_path / "vqvae")


@pytest.mark.parametrize("fault", ["exception", "signal", "signal, the other hangs"])
def test_a_process_that_dies_ends_the_others_and_is_named(tmp_path, hanging, fault):
    run = hanging if "hangs" in fault else FatalRun(fault, tmp_path)
    done = ended(run.launched, 300)
    assert done.returncode != 0
    assert len(run.pids()) == 2 and not any(map(psutil.pid_exists, run.pids()))
    summary = done.stderr[done.stderr.index("FAILED") :]  # the launcher's
    if fault == "exception":
        cause = summary[summary.index("Root Cause") :]
        assert "(local_rank: 1)" in cause and "the third batch of process 1 of 2 is bad" in cause
    else:
        assert "(local_rank: 1)" in summary and "Signal 9 (SIGKILL)" in summary
