"""What command lines read, and how errors end them."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from diffusers.optimization import SchedulerType

from diffusion_bridge_vq.__main__ import _VERBS, main
from diffusion_bridge_vq.cli import default_device, errors_as_lines, parse_config, parse_run
from diffusion_bridge_vq.cli.training import describe_options
from diffusion_bridge_vq.training import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig
from diffusion_bridge_vq.training.config import _LR_SCHEDULES

ROOT = Path(__file__).resolve().parents[1]


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
        (["--mode=stable", "--joint-fraction=0.6"], "`joint_fraction` must be at most `freeze_fraction`, got 0.6 and"),
        (["--joint-fraction", "1"], "`joint_fraction` of 1 would never train the prior"),
        (["--class-dropout", "1", "--class-conditional"], "`class_dropout` of 1 would never show a class"),
        (["--mode=stable", "--adversarial-weight=1"], "after step 600, but the autoencoder is trained for 600 steps"),
        (["--mode=stable", "--joint-fraction=0", "--freeze-fraction=0"], "`freeze_fraction` 0.0 of 1200 steps leaves"),
        (["--joint-fraction", "0"], "`joint_fraction` 0.0 of 1200 steps leaves none for the encoder"),
        (
            ["--freeze-fraction=0.5"],
            "`freeze_fraction` 0.5 is for mode 'stable', and `mode` is 'decoder': leave it out",
        ),
        (
            ["--mode=stable", "--decoder-noise=0.5"],
            "`decoder_noise` 0.5 is for mode 'decoder', and `mode` is",
        ),
        (["--mode=paper", "--joint-fraction=0.5"], "`joint_fraction` 0.5 is for mode 'decoder' or 'stable'"),
        (["--regularization", "none"], "`regularization` 'none' is for mode 'stable' or 'paper'"),
        (["--adversarial-fraction=0.1"], "`adversarial_fraction` 0.1 does nothing without `adversarial_weight`"),
        (["--perceptual-features=lpips"], "does nothing without `perceptual_weight`"),
        (["--class-dropout=0.9"], "does nothing without `class_conditional`"),
        (["--condition-dropout=0.9"], "does nothing without `condition`"),
        (["--validate-every=7"], "does nothing without `validation_split`"),
        (["--evaluate-images=7"], "does nothing without `evaluate_every`"),
        (["--shuffle-buffer=7"], "does nothing without `streaming`"),
        (["--lr-schedule=constant"], "'constant' has no warm-up, and `lr_warmup_steps` is 50"),
    ],
)
def test_bad_values_end_with_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_config(E2EConfig, arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    "option", [["--dataset=photos"], ["--split=test"], ["--image-column=image"], ["--label-column=style"]]
)
def test_how_to_read_images_is_refused_of_a_run_that_reads_none(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_config(PriorConfig, ["--preset=digits", "--vqvae-from=vq", "--latents=encoded", *option])
    value = option[0].split("=")[1]
    assert f"{value!r} isn't read, since the run is trained on what is encoded in encoded" in capsys.readouterr().err


def test_validation_images_are_read_next_to_encoded_ones():
    given = ["--preset=digits", "--vqvae-from=vq", "--latents=encoded", "--validation-split=test"]
    assert parse_config(PriorConfig, [*given, "--dataset=photos", "--label-column=style"]).dataset == "photos"
    assert parse_config(PriorConfig, ["--preset=cifar10-tiny", *given[1:]]).dataset == "uoft-cs/cifar10"
    evaluated = parse_config(PriorConfig, [*given, "--split=training", "--evaluate-every=9"])
    assert evaluated.split == "training"  # whose images an evaluation reads


def test_settings_of_a_saved_run_that_do_nothing_are_left_out():
    saved = {"preset": "digits", "vqvae_from": "vq", "latents": "encoded", "dataset": "photos", "split": "all"}
    assert PriorConfig.used(saved) == {"preset": "digits", "vqvae_from": "vq", "latents": "encoded"}
    assert PriorConfig.used(saved | {"latents": None}) == saved | {"latents": None}


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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA: Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB)"),
    ],
)
def test_too_little_memory_is_a_line(error, capsys):
    with pytest.raises(SystemExit, match="2"), errors_as_lines():
        raise error
    assert capsys.readouterr().err.endswith(
        "isn't enough memory for this: take fewer images at once, or smaller ones.\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of shared memory"),
        RuntimeError("Expected a tensor in channels-last memory format"),
    ],
)
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)), errors_as_lines():
        raise error


@pytest.mark.parametrize(
    ("there", "usual", "with_float64"),
    [(None, "cpu", "cpu"), ("cuda", "cuda", "cuda"), ("xpu", "xpu", "xpu"), ("mps", "mps", "cpu")],
)
def test_the_default_device_is_the_accelerator(there, usual, with_float64, monkeypatch):
    """Some commands took any, as training does, and others CUDA alone."""
    found = None if there is None else torch.device(there)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert [default_device().type, default_device(float64=True).type] == [usual, with_float64]


def test_help_shows_the_values_of_the_preset_in_groups(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_config(E2EConfig, ["--preset", "cifar10", "--help"])
    text = capsys.readouterr().out
    shown = {line.strip() for line in text.splitlines() if line.endswith(":")}
    assert {"common options:", "data:", "networks:", "this kind of run:"} <= shown
    flat = " ".join(text.split())
    assert "images per process and step (default: 256)" in flat and "optimizer steps (default: 100000)" in flat
    for f in dataclasses.fields(E2EConfig):
        assert text.count(f"--{f.name.replace('_', '-')} ") + text.count(f"--{f.name.replace('_', '-')},") >= 1, f.name
    assert "_" not in "".join(re.findall(r"^  (--\S+)", text, re.MULTILINE))  # each option once


@pytest.mark.parametrize("script", ["train_vqvae.py", "train_prior.py", "train_pixelcnn.py", "train_e2e.py"])
def test_help_imports_nothing_slow(script):
    """Importing torch and diffusers takes seconds."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'examples' / script)!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    print([name for name in ('torch', 'diffusers', 'accelerate', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_file_of_settings_lies_between_preset_and_options(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: cifar10-tiny\ndataset: x\nbatch-size: 7\nlearning_rate: 3e-4\nunet: {dropout: 0.2}\n")
    config = parse_config(E2EConfig, ["--config", str(file), "--max-train-steps", "5"])
    assert (config.preset, config.batch_size, config.learning_rate, config.max_train_steps) == (
        "cifar10-tiny",
        7,
        3e-4,
        5,
    )
    assert config.unet["dropout"] == 0.2 and config.unet["block_out_channels"] == [128, 192]
    assert parse_config(E2EConfig, ["--config", str(file), "--batch-size=9"]).batch_size == 9


def test_the_settings_that_a_run_saves_start_the_same_run(tmp_path):
    config = parse_config(E2EConfig, ["--preset", "digits", "--mode", "paper", "--scheduler", '{"eta": 2.0}'])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_json() | {"machine": {"device": "cpu"}}))
    assert parse_config(E2EConfig, ["--config", str(file)]) == dataclasses.replace(config, dataset_name="digits")


def test_what_a_run_saved_and_its_mode_has_no_use_for_is_left_out(tmp_path, capsys):
    """As runs of 0.1.0 saved it; of settings that somebody wrote it is refused."""
    file, written = tmp_path / "config.json", tmp_path / "run.yaml"
    config = parse_config(E2EConfig, ["--preset", "digits"])
    settings = config.to_json() | {"freeze_fraction": 0.5}
    file.write_text(json.dumps(settings | {"machine": {"device": "cpu"}}))
    assert parse_config(E2EConfig, ["--config", str(file)]) == dataclasses.replace(config, dataset_name="digits")
    written.write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="2"):
        parse_config(E2EConfig, ["--config", str(written)])
    assert "`freeze_fraction` 0.5 is for mode 'stable'" in capsys.readouterr().err


def test_settings_of_one_mode_are_not_those_of_another(tmp_path, capsys):
    """A saved "decoder" run has weights of terms that Algorithm 1 hasn't."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(parse_config(E2EConfig, ["--preset", "digits"]).to_json()))
    for mode in ("paper", "stable"):
        with pytest.raises(SystemExit, match="2"):
            parse_config(E2EConfig, ["--config", str(file), "--mode", mode])
        assert f"has settings for mode 'decoder', not '{mode}'" in capsys.readouterr().err
    assert parse_config(E2EConfig, ["--config", str(file), "--mode", "decoder"]).mode == "decoder"
    file.write_text("batch_size: 7")
    assert parse_config(E2EConfig, ["--config", str(file), "--mode", "paper"]).weighting == "elbo"


@pytest.mark.parametrize(
    ("options", "flag", "default"),
    [
        ([], "--freeze-fraction", "1.0"),
        (["--mode=stable"], "--freeze-fraction", "0.5"),
        (["--mode=stable"], "--l1-weight", "0.1"),
        (["--mode=paper"], "--l1-weight", "0.0"),
        (["--mode=paper"], "--weighting", "elbo"),
    ],
)
def test_help_shows_the_values_of_the_mode(options, flag, default, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_config(E2EConfig, [*options, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.split(f"{flag} ", 1)[1].split("(default: ", 1)[1].startswith(f"{default})")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_sise: 4\n", "batch_sise, which runs of kind 'e2e' don't have"),
        ("- 3\n", "must hold settings by name, got list"),
        ("a: [\n", "can't be read"),
        ("batch_size: none\n", "`batch_size` must be of type int"),
        (None, "can't be read"),
    ],
)
def test_a_bad_file_of_settings_is_named(text, words, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        parse_config(E2EConfig, ["--config", str(file)])
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_learning_rate_schedules_are_those_of_diffusers():
    assert {*_LR_SCHEDULES, "piecewise_constant"} == {schedule.value for schedule in SchedulerType}


@pytest.mark.parametrize("arguments", [["--public"], ["--license", "mit"]])
def test_options_of_an_upload_need_a_repository(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_run(E2EConfig, arguments, can_push=True)
    assert "go with --push-to-hub" in capsys.readouterr().err


def test_an_upload_is_read_with_the_settings():
    config, push = parse_run(E2EConfig, ["--seed=3", "--push-to-hub", "me/it", "--license", "mit"], can_push=True)
    assert config.seed == 3 and push is not None
    assert (push.repo_id, push.public, push.license) == ("me/it", False, "mit")


def test_every_verb_is_a_command_and_a_script():
    commands = {path.stem for path in (ROOT / "src/diffusion_bridge_vq/commands").glob("[a-z]*.py")}
    assert {verb.replace("-", "_") for verb in _VERBS} == commands
    assert commands <= {path.stem for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("verb", _VERBS)
def test_help_shows_each_default_once(verb, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dbvq", verb, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    options = re.split(r"\n  (?=-)", capsys.readouterr().out)
    assert (
        len(options) > 2 and [text for text in options if text.count("default:") > 1 or "default: None" in text] == []
    )


def test_a_verb_reads_the_rest_of_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dbvq", "train-e2e", "--learning-rate", "-1"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("dbvq train-e2e: error: `learning_rate` must be positive")
    monkeypatch.setattr("sys.argv", ["dbvq"])
    main()
    assert "train-prior" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["dbvq", "dbvp"])
    with pytest.raises(SystemExit, match="no verb 'dbvp'"):
        main()


@pytest.mark.parametrize("kind", [VQConfig, PriorConfig, PixelCNNConfig, E2EConfig])
def test_the_page_of_flags_has_every_option(kind):
    flags = [flag for group in describe_options(kind).values() for flag, *_ in group]
    assert sorted(flags) == sorted(f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(kind))


@pytest.mark.parametrize("option", ["seed", "batch-size", "max-train-steps", "num-workers", "image-every"])
def test_numbers_that_no_library_takes(option, capsys):
    """They were accepted, and overflowed in numpy, torch or the data loader later."""
    with pytest.raises(SystemExit, match="2"):
        parse_config(E2EConfig, [f"--{option}={10**30}"])
    assert "must be at most 2147483647, got 1e+30" in capsys.readouterr().err


@pytest.mark.parametrize("cls", [E2EConfig, PriorConfig])
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "-0.5", "1e400", "", "1" * 5000])
def test_bad_numbers_never_end_in_a_traceback(cls, value, capsys):
    kinds = get_type_hints(cls)
    names = [name for name, kind in kinds.items() if {int, float, bool} & {kind, *get_args(kind)}]
    assert {"max_train_time", "seed"} <= set(names)  # the default of the first is None
    for name in names:
        with suppress(SystemExit):
            parse_config(cls, ["--init-from=x", f"--{name.replace('_', '-')}={value}"])
