"""
Runs on two real processes (gloo, CPU): what both hold stays equal bit for bit, with DistributedDataParallel, FSDP and
as launched from the command line.
"""

import shutil
from pathlib import Path

import process_work
import pytest
import tiny_run
import torch
from process_results import (
    accelerate,
    assert_it_goes_on_with_two_one_and_two,
    ended,
    same_but_for_rounding,
    seen,
)
from safetensors.torch import load_file
from warm_processes import launch

pytestmark = pytest.mark.slow


KINDS = ["vq", "prior", "e2e", "pixelcnn"]
SPLIT = ["prior", "pixelcnn"]  # by FSDP


def start(kind: str, runs: Path) -> dict[str, Path]:
    """The priors' autoencoder."""
    return {"init_from": runs / "vq-alone"} if kind in ("prior", "pixelcnn") else {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of each kind on two processes, and "vq-alone", on one with batches of the same images."""
    folder = tmp_path_factory.mktemp("runs")
    process_work.run("vq", folder / "vq-alone", {"batch_size": 40})["vqvae"].save_pretrained(
        folder / "vq-alone" / "vqvae"
    )
    for kind in KINDS:
        launch(folder, process_work.run, kind, folder / kind, start(kind, folder))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_hold_the_same_and_draw_differently(runs, kind):
    first, second = seen(runs / kind)
    assert first["states"].keys() == second["states"].keys() == {12, 24}
    for step, state in first["states"].items():
        different = [key for key, value in state.items() if not torch.equal(value, second["states"][step][key])]
        assert not different, (step, different[:5])
    state = first["states"][24]
    if kind in ("vq", "e2e"):
        assert (first["states"][12]["model.vqvae.quantize.ema_count"] == 1).any()  # moved just now
        assert {"model.vqvae.quantize.embedding.weight", "ema.module.vqvae.normalizer.running_var"} <= state.keys()
    assert any(key.startswith("optimizer.") and key.endswith("exp_avg_sq") for key in state)
    # 8 numbers before each batch: none twice, on one process or two
    numbers = torch.cat([*first["next"], *second["next"]])
    assert len(numbers) == 2 * 48 * 8 and len(numbers.unique()) > 0.99 * len(numbers)


def test_batches_are_the_shares_of_one_process(runs):
    """But for the flips, which each process draws itself: an image and its mirror image count as the same."""
    alone = torch.load(runs / "vq-alone" / "seen-0-of-1.pt", weights_only=True)["batches"]
    shares = zip(*(result["batches"] for result in seen(runs / "vq")), strict=True)
    for whole, (first, second) in zip(alone, shares, strict=True):
        both = torch.cat([first, second])
        assert torch.equal(both + both.flip(-1), whole + whole.flip(-1))


def test_usage_and_perplexity_are_of_the_codes_that_both_processes_chose(runs):
    """Of the last whole epoch: 7 batches per process, with 48 in all. Placing the codebook chooses none."""
    counts = sum(sum(result["counts"][35:42]) for result in seen(runs / "vq"))
    assert all(len(result["counts"]) == 48 for result in seen(runs / "vq"))
    p = counts.double() / counts.sum()
    last = tiny_run.records(runs / "vq")[-1]
    assert last["codebook/usage"] == pytest.approx((counts > 0).double().mean().item(), abs=1e-5)
    assert last["codebook/perplexity"] == pytest.approx(torch.special.entr(p).sum().exp().item(), rel=1e-5)


def test_steps_and_rates_do_not_depend_on_the_number_of_processes(runs):
    one, two = tiny_run.records(runs / "vq-alone"), tiny_run.records(runs / "vq")
    assert [r["step"] for r in one] == [r["step"] for r in two] == [4, 8, 12, 16, 20, 24]
    for name in ("train/learning_rate", "train/images_per_second"):  # by the same clock
        assert [r[name] for r in one] == [r[name] for r in two], name
    assert two[0]["train/learning_rate"] == pytest.approx(0.8e-3)  # 4 of 5 steps of warm-up to 1e-3


@pytest.mark.parametrize("kind", ["e2e", "pixelcnn"])
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(runs, tmp_path, kind):
    checkpoints = Path("checkpoints") / "step-00000012"
    shutil.copytree(runs / kind / checkpoints, tmp_path / checkpoints)
    launch(tmp_path, process_work.run, kind, tmp_path, start(kind, runs) | {"resume": True})
    for whole, resumed in zip(seen(runs / kind), seen(tmp_path), strict=True):
        assert resumed["states"].keys() == {24}
        different = [k for k, v in whole["states"][24].items() if not torch.equal(v, resumed["states"][24][k])]
        assert not different, different[:5]
        assert all(map(torch.equal, whole["batches"][24:], resumed["batches"]))
        assert all(map(torch.equal, whole["next"][24:], resumed["next"]))


def test_a_run_goes_on_with_two_one_and_two_processes(runs, tmp_path, capfd):
    assert_it_goes_on_with_two_one_and_two("vq", runs / "vq", {}, tmp_path)
    out = capfd.readouterr().out
    assert "1 process x 8 x 10 images a step instead of 2 processes x 20 x 2; each step has the images" in out
    assert "Codebook and normalizer are updated from 8 images at a time instead of 40." in out


@pytest.fixture(scope="module")
def split_runs(runs, tmp_path_factory) -> Path:
    """Those of the priors on two processes with FSDP."""
    folder = tmp_path_factory.mktemp("split")
    for kind in SPLIT:
        launch(folder, process_work.split, process_work.run, kind, folder / kind, start(kind, runs))
    return folder


@pytest.mark.parametrize("kind", SPLIT)
def test_fsdp_splits_the_prior_and_learns_what_ddp_learns(runs, split_runs, kind):
    first, second = seen(split_runs / kind)
    expected = seen(runs / kind)[0]["states"]
    for step in (12, 24):
        # half on each, but for what doesn't come in halves, and counters
        assert 0.5 <= first["shares"][step] < 0.6 and 0.4 < second["shares"][step] <= 0.5
        assert all(torch.equal(value, second["states"][step][key]) for key, value in first["states"][step].items())
        same_but_for_rounding(first["states"][step], expected[step])
        files = {name: tiny_run.state(split_runs / kind, step, name) for name in ("model", "ema", "optimizer")}
        saved = {f"{file}.{key}": value for file, tensors in files.items() for key, value in tensors.items()}
        assert all(torch.equal(first["states"][step][key], value) for key, value in saved.items())
    losses = [
        [r[name] for r in tiny_run.records(runs / kind) for name in r if "loss/" in name]
        for runs in (runs, split_runs)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and len(losses[0]) == 6


@pytest.mark.parametrize("engine", ["fsdp", "ddp"])
def test_a_checkpoint_of_fsdp_is_resumed(runs, split_runs, tmp_path, engine):
    """With FSDP bit for bit where the whole run ends; without, but for rounding: it holds whole tensors."""
    checkpoints = Path("checkpoints") / "step-00000012"
    shutil.copytree(split_runs / "prior" / checkpoints, tmp_path / checkpoints)
    work = (process_work.split, process_work.run) if engine == "fsdp" else (process_work.run,)
    launch(tmp_path, *work, "prior", tmp_path, start("prior", runs) | {"resume": True})
    for whole, resumed in zip(seen(split_runs / "prior"), seen(tmp_path), strict=True):
        assert all(map(torch.equal, whole["batches"][24:], resumed["batches"]))
        if engine == "fsdp":
            different = [k for k, v in whole["states"][24].items() if not torch.equal(v, resumed["states"][24][k])]
            assert not different, different[:5]
        else:
            assert resumed["shares"][24] == 1
            same_but_for_rounding(resumed["states"][24], whole["states"][24])


def test_a_run_with_fsdp_goes_on_with_two_one_and_two_processes(runs, split_runs, tmp_path):
    """Alone without FSDP, which needs several."""
    options = start("prior", runs)
    assert_it_goes_on_with_two_one_and_two("prior", split_runs / "prior", options, tmp_path, (process_work.split,))
    assert all(0.4 < result["shares"][24] < 0.6 for result in seen(tmp_path))


@pytest.mark.parametrize("kind, engine", [("vq", "ddp"), ("prior", "fsdp")])
def test_a_bad_batch_on_one_process_leaves_the_state_before_it(runs, tmp_path, kind, engine):
    """Process 1 alone meets too large latents in the sixth step: both stop there, and what is saved is the fifth's."""
    work = (process_work.split,) if engine == "fsdp" else ()
    launch(tmp_path, *work, process_work.run_into, "latents", kind, tmp_path / "run", start(kind, runs))
    first, second = (torch.load(tmp_path / "run" / f"{rank}-of-2.pt", weights_only=True) for rank in range(2))
    assert "Step 6 gave latent rms" in second["message"] and "nother process" in first["message"]
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors")
    for result in (first, second):
        assert result["before"].keys() == saved.keys()
        assert all(torch.equal(result["before"][name], value) for name, value in saved.items())


def test_the_configuration_of_fsdp_splits_block_by_block(runs, tmp_path):
    """As launched, with the CPU as an accelerator; the U-Net's blocks are gathered one after the other."""
    blocks = ("--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP", "--fsdp_transformer_layer_cls_to_wrap=ResnetBlock2D")
    work = (process_work.__file__, "fsdp", str(tmp_path), str(runs / "vq-alone"))
    done = ended(accelerate(*blocks, *work, config="fsdp.yaml"), 600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(0.4 < result["shares"][24] < 0.6 for result in seen(tmp_path))
    same_but_for_rounding(seen(tmp_path)[0]["states"][24], seen(runs / "prior")[0]["states"][24])
