"""What is said when the other processes of a run are gone."""

from types import SimpleNamespace

import pytest
import torch

from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training.fault_tolerance import endings
from diffusion_bridge_vq.training.fault_tolerance.endings import Endings

GLOO = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer\nand more")


@pytest.fixture
def lose(tmp_path):
    """Raises an error in the steps of process 1 of `processes`."""

    def raise_inside(error: Exception, processes: int = 2) -> None:
        accelerator = SimpleNamespace(num_processes=processes, process_index=1)
        state = SimpleNamespace(folder=RunFolder(tmp_path), config=SimpleNamespace(network_timeout=7))
        with Endings(accelerator, state, None).naming_lost_processes():
            raise error

    return raise_inside


@pytest.mark.parametrize("error", [GLOO, torch.distributed.DistBackendError("NCCL: remote error")])
def test_lost_processes_are_named(lose, error):
    with pytest.raises(OSError, match=r"Process 1 of 2 lost the others.*7 s; there is no checkpoint yet") as lost:
        lose(error)
    assert lost.value.__cause__ is error and str(lost.value).endswith(f"({str(error).splitlines()[0]})")


def test_what_was_saved_is_named(lose, monkeypatch, tmp_path):
    monkeypatch.setattr(endings, "newest_whole", lambda folder: (folder / "step-00000004", []))
    with pytest.raises(OSError, match=f"`resume` goes on from {tmp_path}/checkpoints/step-00000004"):
        lose(GLOO)


@pytest.mark.parametrize(
    ("error", "processes"), [(RuntimeError("bad"), 2), (GLOO, 1), (ValueError("a folder named gloo"), 2)]
)
def test_other_errors_stay(lose, error, processes):
    with pytest.raises(type(error)) as raised:
        lose(error, processes)
    assert raised.value is error
