"""What command lines read, and how errors end them."""

import json
from pathlib import Path

import pytest

from diffusion_bridge_vq.cli import errors_as_lines, parse_config
from diffusion_bridge_vq.training import E2EConfig, PriorConfig


def test_options_change_the_preset():
    config = parse_config(E2EConfig, ["--preset", "cifar10", "--dataset", "x", "--max-train-steps", "7"])
    assert (config.max_train_steps, config.dataset, config.batch_size) == (7, "x", 256)
    assert json.loads(json.dumps(config.to_json()))["preset"] == "cifar10"


def test_component_arguments_are_merged_with_the_preset():
    config = parse_config(E2EConfig, ["--preset", "cifar10", "--dataset", "x", "--unet", '{"dropout": 0.1}'])
    assert config.unet["dropout"] == 0.1 and config.unet["block_out_channels"] == [256, 464]


def test_flags_can_be_switched_off():
    assert parse_config(E2EConfig, ["--preset=digits", "--no-random-flip"]).random_flip is False


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    """Where the shell doesn't do it; `--output-dir=~/x` made a folder named "~"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_config(E2EConfig, ["--output-dir=~/x"]).output_dir == tmp_path / "x"
    assert parse_config(PriorConfig, ["--init-from=~/y"]).init_from == tmp_path / "y"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "mnist"], "no preset 'mnist'"),
        (["--unet", "{"], "not JSON"),
        (["--unet", "3"], "JSON object"),
        (["--batch-size", "0"], "`batch_size` must be at least 1"),
        (["--learning-rate", "-1"], "positive"),
        (["--ema-decay", "1"], "0.999"),
        (["--preset", "miniimagenet"], "give `dataset`"),
        (["--resolution", "30"], "divisible by 4"),
        (["--freeze-fraction", "1.5"], "[0, 1]"),
        (["--mode", "naive"], "stable"),
        (["--learning-rate", "nan"], "`learning_rate` must be a finite number, got nan"),
        (["--max-grad-norm", "inf"], "`max_grad_norm` must be a finite number"),
        (["--max-train-time", "inf"], "`max_train_time` must be a finite number"),
        (["--weight-decay", "-0.1"], "`weight_decay` must be at least 0"),
        (["--reconstruction-weight", "-1"], "`reconstruction_weight` must be at least 0"),
        (["--encoder-gradient-weight", "-1"], "`encoder_gradient_weight` must be at least 0"),
        (["--regularization-weight", "-1"], "`regularization_weight` must be at least 0"),
        (["--seed", "-1"], "`seed` must be at least 0"),
        (["--lr-schedule", "cosin"], "`lr_schedule` must be one of linear, cosine, "),
        (["--lr-schedule", "piecewise_constant"], "`lr_schedule` must be one of"),  # has rules that no option gives
        (["--evaluate-extractor", "vgg"], "'vgg'"),
        (["--joint-fraction", "0.6"], "`joint_fraction` must be at most `freeze_fraction`, got 0.6 and 0.5"),
        (["--joint-fraction", "1", "--freeze-fraction", "1"], "`joint_fraction` of 1 would never train the prior"),
    ],
)
def test_bad_values_end_with_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_config(E2EConfig, arguments)
    assert words in capsys.readouterr().err.rstrip().split("\n")[-1]


def test_a_prior_needs_an_autoencoder(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_config(PriorConfig, [])
    assert "train_vqvae" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("why"), OSError("why"), ImportError("why")])
def test_errors_become_lines(error, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(Path("examples") / "sample.py")])
    with pytest.raises(SystemExit, match="2"), errors_as_lines():
        raise error
    assert capsys.readouterr().err == "sample.py: error: why\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), errors_as_lines():
        raise ZeroDivisionError
