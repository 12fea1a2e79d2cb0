"""What a resumed run refuses, what it says, and what it leaves as it is."""

import json
import shutil

import pytest
from tiny_run import small_config as config

from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, VQConfig, train
from diffusion_bridge_vq.training.fault_tolerance import run_state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(config(VQConfig, folder, max_train_steps=5))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"random_flip": True}, "random_flip: False then, True now"),
        ({"balance_classes": True}, "balance_classes: False then, True now"),
    ],
)
def test_another_order_of_the_data_is_refused(run, change, words):
    before = contents(run)
    with pytest.raises(ValueError, match=rf"{words}.*skipped or repeated.*`init_from`"):
        train(config(VQConfig, run, resume=True, **change))
    assert contents(run) == before


@pytest.mark.parametrize("named", [True, False])
def test_another_mode_is_refused(tmp_path, monkeypatch, named):
    """Also by checkpoints of 0.1.0, whose settings don't name it: the file of the last start does."""
    fixed = run_state.fixed_settings
    with monkeypatch.context() as patch:
        patch.setattr(
            run_state, "fixed_settings", lambda c: {k: v for k, v in fixed(c).items() if named or k != "mode"}
        )
        train(config(E2EConfig, tmp_path, mode="stable", max_train_steps=4))
    with pytest.raises(
        ValueError,
        match=r"mode: stable then, decoder now\)\. With these another objective would.*weights\. Resume.*`init_from`",
    ):
        train(config(E2EConfig, tmp_path, resume=True, max_train_steps=5))
    with pytest.raises(ValueError, match="mode: stable then, decoder now"):
        train(config(E2EConfig, tmp_path, resume=True, dry_run=True, max_train_steps=5))
    assert train(config(E2EConfig, tmp_path, mode="stable", resume=True, max_train_steps=5)) is not None


def test_a_dry_run_that_resumes_changes_nothing(run, capsys):
    before = contents(run)
    assert train(config(VQConfig, run, resume=True, dry_run=True, max_train_steps=6)) is None
    assert "resumed from" in capsys.readouterr().out and contents(run) == before


def test_other_networks_are_refused_with_the_settings_that_changed(run):
    vqvae = config(VQConfig, run).vqvae | {"num_vq_embeddings": 9}
    with pytest.raises(
        ValueError, match=r"doesn't fit this model.*Changed since the last start: .*vqvae \{"
    ) as caught:
        train(config(VQConfig, run, resume=True, vqvae=vqvae))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_settings_goes_by_those_of_the_last_start(tmp_path, monkeypatch):
    """As runs have them that were started before checkpoints held settings."""
    save = run_state.save_checkpoint

    def without_settings(directory, accelerator, modules, optimizer, state, keep):
        return save(
            directory, accelerator, modules, optimizer, {k: v for k, v in state.items() if k != "settings"}, keep
        )

    monkeypatch.setattr(run_state, "save_checkpoint", without_settings)
    train(config(VQConfig, tmp_path, max_train_steps=4))
    with pytest.raises(ValueError, match="seed: 0 then, 3 now"):
        train(config(VQConfig, tmp_path, resume=True, seed=3))
    assert train(config(VQConfig, tmp_path, resume=True)) is not None


def test_other_settings_that_change_are_named(run, capsys):
    train(config(VQConfig, run, resume=True, max_train_steps=6, learning_rate=0.5))
    out = capsys.readouterr().out
    assert "max_train_steps 6 instead of 5; learning_rate 0.5 instead of 0.001" in out


def test_fewer_steps_than_there_were_are_refused_and_nothing_is_rewritten(run):
    before = contents(run)
    with pytest.raises(ValueError, match=r"is of step 5, `max_train_steps` is 4: nothing is left to train"):
        train(config(VQConfig, run, resume=True, max_train_steps=4, log_every=1))
    assert contents(run) == before


def test_a_finished_run_is_not_rewritten(run, capsys):
    before = contents(run)
    components = train(config(VQConfig, run, resume=True, max_train_steps=5, learning_rate=0.5))
    assert contents(run) == before and components.keys() == {"vqvae"}
    assert "Nothing is left to train: the run ended after step 5" in capsys.readouterr().out


@pytest.mark.parametrize("line", [b"{}\n", b"12\n", b"\xff\xfe\x00garbage\n", b'{"step": "two"}\n', b"[[[[\n"])
def test_metrics_with_damaged_lines_do_not_stop_a_run(run, line):
    metrics = RunFolder(run).metrics
    whole = metrics.read_bytes()
    metrics.write_bytes(line + whole + line)
    train(config(VQConfig, run, resume=True, max_train_steps=6))
    assert metrics.read_bytes().startswith(whole)
    assert [record["step"] for record in RunFolder(run).read_metrics()] == [2, 4, 5, 6]


def test_a_kill_while_metrics_are_rewritten_leaves_them(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1, "loss": 0.5})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.replace_metrics([])
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}]
    assert json.loads(run.metrics.read_text()) == {"step": 1, "loss": 0.5}
