"""The loop that trains every row: AdamW, warm-up and cosine, averaged weights, for seconds of CPU time."""

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch

from diffusion_bridge_vq.training.ema import AveragedWeights

from .data import batches
from .row import Learner, Phase, Row

_WARMUP = 0.05  # fraction of a phase
_CHECKS = 10  # of the loss on the test split, with `keep_best`
_VALIDATION_SEED = 0
_EQUAL = 1.01  # losses within 1 % don't tell learning rates apart
_LEAST = 1e-3  # seconds of a phase whose time was used up before it began: it takes one step


class Trained(NamedTuple):
    """
    What training took: optimizer steps, CPU seconds, and the loss on the test split at the end, of each phase. The
    seconds of the last one have what its row does after it.
    """

    steps: list[int]
    seconds: list[float]
    validation: list[float]


def train_row(row: Row, seconds: float, max_steps: int | None = None, finish: bool = True) -> Trained:
    """
    Train all phases of a row. The clock is the CPU time of the process: with one thread, the time that it would take
    on an idle core, whatever else the machine does. It runs while a row encodes or draws what it learns from, too.

    Args:
        row ([`Row`]): changed in place; averaged weights at the end.
        seconds (`float`): of CPU time, for all phases together.
        max_steps (`int`, *optional*): of each phase, to try the machinery.
        finish (`bool`, *optional*, defaults to `True`): do what the row does with trained weights, too; it belongs to
            the last phase.

    Raises:
        FloatingPointError: a loss that isn't finite.
    """
    found: list[tuple[int, float, float]] = []
    began, end, losses = time.process_time(), 0.0, 0.0
    for phase in row.phases():
        end += phase.fraction * seconds
        now = time.process_time()
        steps, loss = _train(phase, row, max(_LEAST, began + end + losses - now), max_steps)
        trained = time.process_time()
        found.append((steps, trained - began - losses - sum(f[1] for f in found), loss()))
        losses += time.process_time() - trained  # the loss on the test split isn't training
    if finish:
        now = time.process_time()
        row.finish()
        found[-1] = (found[-1][0], found[-1][1] + time.process_time() - now, found[-1][2])
    return Trained(*(list(column) for column in zip(*found, strict=True)))


def _train(phase: Phase, row: Row, seconds: float, max_steps: int | None) -> tuple[int, Callable[[], float]]:
    """Steps, and how to get the loss on the test split."""
    started = time.process_time()
    learner, decay = phase.learner, row.preset["ema_decay"]
    tensors = phase.tensors(row.data.training)
    rows = batches(len(next(iter(tensors.values()))), row.preset["batch_size"])
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=phase.learning_rate, weight_decay=0.0)
    averaged = AveragedWeights(learner, decay)
    best: tuple[float, dict[str, torch.Tensor]] | None = None
    done, checks = 0, 1
    learner.train()
    while True:
        progress = (time.process_time() - started) / seconds
        if max_steps is not None:
            progress = max(progress, done / max_steps)
        if progress >= 1 and done:
            break
        if phase.keep_best and progress >= checks / _CHECKS:
            checks += 1
            best = _better(best, averaged.module, phase, row)
        learner.set_progress(min(1.0, progress))
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * _schedule(progress)
        batch = next(rows)
        loss = learner(**{name: tensor[batch] for name, tensor in tensors.items()})
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{row.title}: the loss is {loss.item()} at step {done}.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        averaged.update_parameters(learner, min(decay, (1 + done) / (10 + done)))
    if phase.keep_best:
        best = _better(best, averaged.module, phase, row)
    learner.load_state_dict(averaged.module.state_dict() if best is None else best[1])
    learner.eval()
    return done, lambda: validation_loss(learner, phase, row)


def _schedule(progress: float) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to 0."""
    warm = min(1.0, (progress + 1e-3) / _WARMUP)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _better(best: Any, learner: Any, phase: Phase, row: Row) -> tuple[float, dict[str, torch.Tensor]]:
    loss = validation_loss(learner, phase, row)
    return best if best is not None and best[0] <= loss else (loss, deepcopy(learner.state_dict()))


@torch.no_grad()
def validation_loss(learner: Learner, phase: Phase, row: Row) -> float:
    """Mean loss on the first 1,024 images of the test split, with the same noise each time."""
    tensors = {name: tensor[:1024] for name, tensor in phase.tensors(row.data.test).items()}
    size, total = row.preset["batch_size"], 0.0
    count = len(next(iter(tensors.values())))
    was_training = learner.training
    learner.eval()
    with torch.random.fork_rng():
        torch.manual_seed(_VALIDATION_SEED)
        for part in torch.arange(count).split(size):
            total += len(part) * learner(**{name: tensor[part] for name, tensor in tensors.items()}).item()
    learner.train(was_training)
    return total / count


def try_learning_rates(
    make: Callable[[float], Row], own: float, seconds: float, seed: int, max_steps: int | None = None
) -> dict[float, float]:
    """
    The loss on the test split, by learning rate: a third of its own, its own and three times that, each on a fresh
    row for `seconds` of CPU time.
    """
    found = {}
    for rate in (own / 3, own, own * 3):
        torch.manual_seed(seed)
        try:
            found[rate] = train_row(make(rate), seconds, max_steps, finish=False).validation[-1]
        except FloatingPointError:
            found[rate] = math.inf
    return found


def choose_learning_rate(losses: Mapping[float, float]) -> float:
    """The lowest rate within 1 % of the lowest loss: what is no better in a short trial may diverge in a long run."""
    least = min(losses.values())
    return min(rate for rate, loss in losses.items() if loss <= least * _EQUAL)
