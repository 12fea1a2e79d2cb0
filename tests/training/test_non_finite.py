"""The detector: what it notices, what it holds, and that a healthy run doesn't notice it."""

import math

import pytest
import torch

from diffusion_bridge_vq.training.fault_tolerance.non_finite import LARGEST_LATENT_RMS, LATENT_RMS, NonFiniteDetector


def run(values: list[dict[str, float]], scaled: bool = False) -> tuple[torch.Tensor, torch.Tensor, NonFiniteDetector]:
    """
    A weight whose gradient is the sum of the given values, and a buffer that counts forward passes, over their steps.
    """
    weight, buffer = torch.nn.Parameter(torch.zeros(3)), torch.zeros(2)
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=True)
    detector = NonFiniteDetector(optimizer, [buffer], torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)  # of fp16
    for step, watched in enumerate(values):
        buffer += 1.0 if all(map(math.isfinite, watched.values())) else math.nan
        optimizer.zero_grad()
        scaler.scale(sum(watched.values()) * weight.sum()).backward()
        scaler.unscale_(optimizer)
        detector.watch({k: torch.tensor(v) for k, v in watched.items()}, step)
        scaler.step(optimizer)
        scaler.update()
        detector.hold()
    return weight.detach(), buffer, detector


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_holds_still_from_the_first_bad_step_on(bad, scaled):
    fine, broken = {"prior": 0.5, "codebook": 0.5}, {"prior": 0.5, "codebook": bad}
    whole, counted, detector = run([fine, fine])
    assert detector.failure() is None
    weight, buffer, detector = run([fine, fine, broken, fine, {"prior": math.nan}], scaled)
    assert torch.equal(weight, whole) and torch.equal(buffer, counted)
    failure = detector.failure()
    assert failure.step == 2 and failure.culprits == ["codebook"] and failure.values["prior"] == 0.5


def test_names_are_those_of_the_bad_step():
    """Phases have their own terms, as many or others."""
    detector = run([{"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}, {"c": math.inf, "d": 2.0}, {"e": 1.0}])[2]
    assert detector.failure().values == {"c": math.inf, "d": 2.0} and detector.failure().culprits == ["c"]


def test_as_many_names_as_there_are():
    """The last of them is the bad one; a phase with fewer came before, and another follows."""
    many = {f"term {i}": 1.0 for i in range(20)}
    failure = run([{"a": 1.0}, many | {"norm": math.nan}, {"a": 1.0}])[2].failure()
    assert failure.culprits == ["norm"] and list(failure.values) == [*many, "norm"]


def test_names_are_those_of_the_bad_look():
    """Of two in a step, as with an engine that tells the gradients' norm later than the losses are known."""
    for bad in ("loss", "norm"):
        weight = torch.nn.Parameter(torch.zeros(3))
        detector = NonFiniteDetector(torch.optim.AdamW([weight], fused=True), [], torch.device("cpu"))
        for step in range(4):
            for name in ("loss", "norm"):
                detector.watch({name: torch.tensor(math.nan if step == 2 and name == bad else 1.0)}, step)
        assert detector.failure().step == 2 and detector.failure().culprits == [bad] == list(detector.failure().values)


def test_latents_have_a_limit():
    near = {"prior": 2 * LARGEST_LATENT_RMS, LATENT_RMS: 0.9 * LARGEST_LATENT_RMS}
    assert run([near])[2].failure() is None  # a loss may be large
    detector = run([near, {**near, LATENT_RMS: 1.1 * LARGEST_LATENT_RMS}])[2]
    assert detector.failure().step == 1 and detector.failure().culprits == [LATENT_RMS]


def test_a_healthy_run_is_that_of_plain_adam():
    fine = {"prior": 0.3}
    weight, _, _ = run([fine] * 5)
    peer = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([peer], lr=0.1, weight_decay=0.0, fused=True)
    for _ in range(5):
        peer.grad = torch.full((3,), 0.3)
        optimizer.step()
    assert torch.equal(weight, peer.detach())


def test_never_waits_for_the_device():
    """On the meta device reading a value is an error."""
    buffer = torch.zeros(2, device="meta")
    weight = torch.nn.Parameter(torch.zeros(3, device="meta"))
    detector = NonFiniteDetector(torch.optim.AdamW([weight], fused=False), [buffer], torch.device("meta"))
    detector.watch({"prior": torch.zeros((), device="meta"), LATENT_RMS: torch.ones((), device="meta")}, 0)
    detector.hold()
    with pytest.raises(RuntimeError):
        detector.failure()
