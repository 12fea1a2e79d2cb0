"""
Runs that are killed (SIGKILL) again and again and started again until the end, against one that nothing happened to:
in real processes, at drawn places, bit for bit.
"""

import json
import random
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from killable_run import ACCUMULATION, BATCHES_PER_EPOCH, FREEZE_FROM, JOINT_FROM, STEPS, config, run
from run_in_memory import FILES
from safetensors.torch import load_file
from tiny_run import records
from warm_processes import CONTEXT, start

from diffusion_bridge_vq.training import train
from diffusion_bridge_vq.training.fault_tolerance.checkpoint import list_checkpoints

# clocks
NOT_HELD = {"train/images_per_second", "train/seconds"}
PATIENCE = 300  # seconds without a word from a process, after which something is wrong
AFTER_ONE = ("batch", 3)  # after the first checkpoint


def start_run(folder: Path, place: tuple[str, int], checkpoint_every: int = 1) -> tuple[ForkServerProcess, Connection]:
    """The run in `folder`, from its newest checkpoint if there is one; and the way to hear from it."""
    here, there = CONTEXT.Pipe()
    resume = newest_step(folder) > 0
    settings = config(folder, checkpoint_every=checkpoint_every, resume=resume)
    process = start(run, settings, place, there)
    there.close()
    return process, here


def to_the_end(folder: Path) -> None:
    process, connection = start_run(folder, ("end", 0))
    assert connection.poll(PATIENCE), "nothing heard"
    assert connection.recv() == "done"
    process.join()
    assert process.exitcode == 0


def kill(folder: Path, place: tuple[str, int], watched: bool = False, checkpoint_every: int = 1) -> str:
    """
    Start, and kill where the run waits at `place`, or, if `watched`, earlier: while it writes. Returns where it was.
    """
    begun = time.time_ns()
    process, connection = start_run(folder, place, checkpoint_every)
    found = ""
    while not found:
        assert time.time_ns() - begun < PATIENCE * 1e9, "nothing heard"
        if connection.poll(0.001 if watched else 1):
            found = connection.recv()
        elif watched and any(touched(p) > begun for p in (folder / "checkpoints").glob("*.partial")):
            found = "seen"
    process.kill()
    process.join()
    assert process.exitcode == -9, found  # it has failed by itself: a traceback
    return found


def touched(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def newest_step(folder: Path) -> int:
    return max((int(p.stem[5:]) for p in list_checkpoints(folder / "checkpoints")), default=0)


def half_written(folder: Path) -> bool:
    """Whether there is a checkpoint newer than the newest, unfinished."""
    return any(int(p.stem[5:]) > newest_step(folder) for p in (folder / "checkpoints").glob("*.partial"))


def order(folder: Path) -> list[dict[int, list[str]]]:
    """For each process: the batches of each of its steps, by digest."""
    found: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for line in (folder / "order.jsonl").read_text().splitlines():
        process, step, digest = json.loads(line)
        found[process][step].append(digest)
    return list(found.values())


def metrics(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k not in NOT_HELD} for record in records(folder)]


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    to_the_end(whole)
    draw = random.Random(0)
    gathering = [{"place": ("batch", n), "checkpoint_every": draw.choice((1, 2))} for n in (2, 4, 4, 6, 8, 8)]
    between = [{"place": ("batch", n), "checkpoint_every": draw.choice((1, 2))} for n in (5, 7)]
    writing = [{"place": ("write", n)} for n in draw.sample(range(2, 18), k=6)]  # in the first checkpoint or after it
    plan = [*gathering, *between, *writing, *[{"place": AFTER_ONE, "watched": True}] * 4]
    draw.shuffle(plan)
    halves, reached = 0, []
    for kill_at in [{"place": ("batch", 2)}, {"place": ("write", 4)}, *plan]:
        kill(killed, **kill_at)
        halves += half_written(killed)
        reached.append(newest_step(killed))
        if len(reached) <= 2:  # nothing is held yet: it can't be resumed, and may be started in the same folder
            assert reached[-1] == 0
            with pytest.raises(ValueError, match=r"There is no checkpoint in .* to resume from"):
                train(config(killed, resume=True))
    to_the_end(killed)

    # the kills came where they should
    assert len(reached) == 20 and halves >= 5
    assert 0 in reached and {*range(JOINT_FROM + 1, FREEZE_FROM)} & {*reached}
    assert FREEZE_FROM < reached[-1] < STEPS, reached
    *stopped, last = order(killed)
    ends = [(step, len(digests)) for step, digests in (list(steps.items())[-1] for steps in stopped)]
    assert len(stopped) == 20 and sum(gathered == 1 for _, gathered in ends) >= len(gathering)
    assert sum((ACCUMULATION * step + gathered) % BATCHES_PER_EPOCH > 0 for step, gathered in ends) >= 10

    # and nothing is to be seen of them: weights, averages, codebook, moments, random state, position, and all of them
    # under the digests of the manifest
    end = Path("checkpoints") / f"step-{STEPS:08d}"
    assert {p.name for p in (killed / end).iterdir()} == set(FILES)
    for name in FILES:
        assert (killed / end / name).read_bytes() == (whole / end / name).read_bytes(), name
    (reference,) = order(whole)
    assert len({digest for digests in reference.values() for digest in digests}) == ACCUMULATION * STEPS
    for steps in (*stopped, last):
        assert all(reference[step][: len(digests)] == digests for step, digests in steps.items())
    assert metrics(killed) == metrics(whole) and len(metrics(whole)) == STEPS
    assert "vqvae.quantize.embedding.weight" in load_file(whole / end / "model.safetensors")
