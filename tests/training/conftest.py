import pytest


@pytest.fixture
def charge(monkeypatch):
    """
    A clock for [`steps_within`] that each forward of an objective moves on by a cost of ours: `charge(cls, cost)` sets
    that of a class and returns the costs of all forwards so far.
    """
    from diffusion_bridge_vq.training import time_budget

    clock, seen = [0.0], []

    def charge_class(cls, cost):
        forward = cls.forward

        def charged(self, *args, **kwargs):
            clock[0] += cost(self)
            seen.append(cost(self))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", charged)
        return seen

    monkeypatch.setattr(time_budget, "synchronized_time", lambda device: clock[0])
    return charge_class
