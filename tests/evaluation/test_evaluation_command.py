"""The command: several verbs at once, and bad numbers as one line."""

import sys

import pytest
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq.commands.evaluate import main
from diffusion_bridge_vq.evaluation import read_results


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    make_gray_pipeline().save_pretrained(tmp_path / "pipeline")

    def run(*arguments) -> None:
        options = ["--model", f"bridge={tmp_path / 'pipeline'}", "--output-dir", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, (*arguments, *options))])
        main()

    return run


def test_several_verbs(evaluate, tmp_path):
    evaluate("reconstruction", "kl", "table", "--num-images", 12, "--num-inference-steps", 2)
    assert {r["metric"] for r in read_results(tmp_path / "out" / "results.json")} == {"reconstruction", "kl"}
    assert (tmp_path / "out" / "tables.md").is_file()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((name, value) for name in ("--batch-size", "--num-images", "--num-train-images") for value in (-1, 0, 1.5)),
        *((name, -1) for name in ("--num-nll-images", "--num-nll-samples", "--num-inference-steps", "--seed")),
        *(("--guidance-scale", value) for value in (-1, "nan", "inf", "much")),
        ("--seed", 2**70),
    ],
)
def test_bad_numbers_are_one_line(evaluate, tmp_path, capsys, option, value):
    """-1 as batch size was a traceback out of torch.split, after the models and images had been loaded."""
    with pytest.raises(SystemExit) as ended:
        evaluate("kl", option, value)
    assert ended.value.code == 2
    line = capsys.readouterr().err.rstrip().split("\n")[-1]
    assert line.startswith("evaluate.py: error: ") and (option in line or option[2:].replace("-", "_") in line)
    assert not (tmp_path / "out" / "results.json").exists()
