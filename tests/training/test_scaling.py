"""Formulas of costs against what is counted by hand and what tensors take."""

import math

import pytest
import torch
from torch import nn

from diffusion_bridge_vq.training.scaling import (
    count_flops,
    count_saved_bytes,
    describe_cost,
    exchanged_bytes,
    state_bytes,
    step_seconds,
    work_hours,
)


def test_state_is_what_a_step_leaves_behind():
    """Of one process, after a step of AdamW and with a copy for the averages."""
    network = nn.Linear(30, 7)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 30)).sum().backward()
    optimizer.step()
    tensors = [*network.parameters(), *(p.grad for p in network.parameters()), *network.parameters()]
    tensors += [moments[name] for moments in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert state_bytes(30 * 7 + 7) == sum(tensor.nbytes for tensor in tensors)
    assert state_bytes(100, 10, processes=2) == 4 * (600 + 10)  # with the buckets of gradients
    assert state_bytes(100, 10, processes=4, sharded=True) == 4 * (125 + 10)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_a_ring_sums_gradients_with_that_many_bytes(processes):
    """The ring itself, message by message."""
    size, sent = 20, [0] * processes
    chunks = [torch.rand(processes, size // processes, dtype=torch.float64) for _ in range(processes)]
    total = sum(chunks)
    for phase in range(2):
        for hop in range(processes - 1):
            messages = [(rank, (rank - hop + phase) % processes) for rank in range(processes)]
            values = [chunks[rank][chunk].clone() for rank, chunk in messages]
            for (rank, chunk), value in zip(messages, values, strict=True):
                sent[rank] += value.numel() * 4
                target = chunks[(rank + 1) % processes]
                target[chunk] = value if phase else target[chunk] + value
    assert all(torch.allclose(own, total) for own in chunks)
    assert sent == [pytest.approx(exchanged_bytes(size, processes))] * processes
    assert exchanged_bytes(size, processes, sharded=True) == 1.5 * exchanged_bytes(size, processes)


def test_operations_are_counted_with_their_backward_pass():
    network, x = nn.Linear(30, 7), torch.rand(5, 30, requires_grad=True)
    with torch.no_grad():
        assert count_flops(lambda: network(x)) == 2 * 5 * 30 * 7
    assert count_flops(lambda: network(x).sum().backward()) == 3 * 2 * 5 * 30 * 7  # to input and to weights


def test_saved_activations_are_counted_once_and_without_weights():
    network, x = nn.Sequential(nn.Linear(30, 7), nn.Tanh(), nn.Tanh()), torch.rand(5, 30)
    # the input, and the result of each tanh; the second one's input is the first one's result
    assert count_saved_bytes(lambda: network(x)) == 4 * (5 * 30 + 2 * 5 * 7)


def test_times_add_up():
    assert step_seconds(6e9, 2e9) == 3
    assert step_seconds(6e9, 2e9, exchanged=4e6, bytes_per_second=8e6) == 3.5
    assert math.isclose(work_hours(3600, 2e9, 1e9, processes=2), 1)


def test_a_line_says_what_a_run_costs():
    line = describe_cost(4e9, 2.0, 1024**2, 0, 2, False)
    assert line.startswith("cost: 4.0 GFLOP a step, 2.0 GFLOP/s, 24 MiB of weights")
    assert line.endswith("4 MiB sent by each process a step")
