"""Pushes where waiting doesn't help end at once, and what diffusers would push is refused before anything is sent."""

import pytest
from hub_server import TOKEN
from huggingface_hub import HfApi, constants
from pipeline_files import WEIGHTS
from tiny_models import make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.hub import PushOptions, push, push_run, upload_while_training


@pytest.fixture
def waits(hub, monkeypatch) -> list[float]:
    """Seconds that were waited."""
    found: list[float] = []
    monkeypatch.setattr(push.time, "sleep", found.append)
    return found


def test_offline(hub, cache, run, waits, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="'tester/model' can't be pushed while HF_HUB_OFFLINE is set: unset it"):
        push_run(run, "tester/model", token=TOKEN)
    with upload_while_training(run, PushOptions("tester/model"), token=TOKEN):
        pass  # the run isn't lost
    assert waits == [] and hub.log == []


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_what_the_hub_will_refuse_again(hub, cache, run, waits, status):
    hub.fail("POST", "/commit/", status=status)
    with pytest.raises(OSError, match="'tester/model' couldn't be pushed") as caught:
        push_run(run, "tester/model", token=TOKEN)
    assert waits == [] and "try again" not in str(caught.value)


def test_a_file_that_is_gone(hub, cache, run, waits, monkeypatch):
    """After it was counted, before it was sent."""
    weights, commit = run / "pipeline" / "unet" / WEIGHTS, HfApi.create_commit

    def lose_and_commit(*arguments, **kwargs):
        weights.unlink(missing_ok=True)
        return commit(*arguments, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", lose_and_commit)
    with pytest.raises(OSError, match=f"couldn't be pushed: .*{WEIGHTS}"):
        push_run(run, "tester/model", token=TOKEN)
    assert waits == []


def test_the_push_of_diffusers(hub, cache, tmp_path):
    """Its card has a snippet that can't load the repository."""
    pipe = make_pipeline()
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3)
    for one in (pipe, DiffusionBridgeVQInpaintPipeline(**pipe.components), PixelCNNVQPipeline(pipe.vqvae, prior)):
        for push_it in (
            lambda one=one: one.push_to_hub("tester/model", token=TOKEN, private=True),
            lambda one=one: one.save_pretrained(tmp_path, push_to_hub=True, repo_id="tester/model", token=TOKEN),
            lambda one=one: one.save_pretrained(tmp_path, True, None, None, True, repo_id="tester/model", token=TOKEN),
        ):
            with pytest.raises(ValueError, match=r"hub\.push_run\(folder, repo_id\).*examples/push_to_hub\.py"):
                push_it()
    assert hub.log == [] and list(tmp_path.iterdir()) == []
