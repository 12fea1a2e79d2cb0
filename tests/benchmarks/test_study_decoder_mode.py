"""benchmarks/study_decoder_mode.py: all starts of a study have the same settings and numbers of steps."""

import itertools
import json
import sys

import pytest


@pytest.fixture
def study(scripts, monkeypatch, tmp_path):
    """The command, in which training writes a folder and a step takes another time whenever it is timed."""
    script = scripts("study_decoder_mode")
    steps, seconds = {}, itertools.count(1)

    def train(config):
        steps[config.output_dir.name] = config.max_train_steps
        (config.output_dir / ("vqvae" if config.output_dir.name.startswith("vq-") else "pipeline")).mkdir(parents=True)

    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr(script, "save_trained", lambda *_: None)
    monkeypatch.setattr(script, "seconds_per_step", lambda config: next(seconds))
    monkeypatch.setattr(script, "evaluate", lambda *_: None)
    monkeypatch.setattr(script, "table", lambda args: "")

    def run(*options: str) -> dict[str, int]:
        steps.clear()
        monkeypatch.setattr(sys, "argv", ["study_decoder_mode.py", "--output-dir", str(tmp_path), *options])
        script.main()
        return dict(steps)

    return run


def test_a_study_goes_on_with_the_steps_that_it_measured_first(study, tmp_path):
    first = study("--seeds", "0", "--arms", "prior", "decoder", "--prior-steps", "60")
    assert first == {"vq-0": 600, "prior-0": 60, "decoder-0": 30}  # a step of the second arm takes twice the time
    again = study("--seeds", "0", "1", "--arms", "prior", "decoder", "decoder-after", "--prior-steps", "60")
    assert again == {"vq-1": 600, "prior-1": 60, "decoder-1": 30, "decoder-after-0": 12, "decoder-after-1": 12}
    assert study("--seeds", "0", "1", "--arms", "prior", "decoder", "decoder-after", "--prior-steps", "60") == {}
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept["settings"]["prior_steps"] == 60 and kept["steps"]["prior-twice"] == 120


@pytest.mark.parametrize("option", ["prior-steps", "autoencoder-steps", "num-images"])
def test_other_settings_are_refused(study, capsys, option):
    study("--seeds", "0", "--arms", "prior")
    with pytest.raises(SystemExit, match="2"):
        study("--seeds", "1", "--arms", "prior", f"--{option}", "77")
    assert f"'{option.replace('-', '_')}': 77" in capsys.readouterr().err


def test_a_study_without_its_settings_is_refused(study, tmp_path, capsys):
    study("--seeds", "0", "--arms", "prior")
    (tmp_path / "settings.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        study("--seeds", "1", "--arms", "prior")
    assert "has prior-0, vq-0, but no settings.json" in capsys.readouterr().err
    assert not (tmp_path / "settings.json").exists() and not (tmp_path / "vq-1").exists()
