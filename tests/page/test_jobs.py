import threading

import pytest

from diffusion_bridge_vq.page.jobs import Stopped, run_in_steps


def test_steps_then_the_result():
    def work(report):
        report(1, 2)
        report(2, 2)
        return {"images": []}

    assert list(run_in_steps(work)) == [{"step": 1, "of": 2}, {"step": 2, "of": 2}, {"images": []}]


def test_errors_come_out():
    def work(report):
        report(1, 2)
        raise ValueError("three is too many")

    job = run_in_steps(work)
    next(job)
    with pytest.raises(ValueError, match="three is too many"):
        next(job)


def test_a_closed_job_stops_at_its_next_step():
    steps, seen, go_on, ended = [], [], threading.Event(), threading.Event()

    def work(report):
        try:
            for step in range(1, 10):
                report(step, 9)
                steps.append(step)
                go_on.wait(30)
        except Stopped:
            seen.append("stopped")
            raise
        finally:
            ended.set()

    job = run_in_steps(work)
    assert next(job) == {"step": 1, "of": 9}
    job.close()
    go_on.set()
    assert ended.wait(30)
    assert steps == [1] and seen == ["stopped"]
