"""benchmarks/study_condition.py: too few images are refused before the model is loaded."""

import sys

import pytest

from diffusion_bridge_vq import DiffusionBridgeVQPipeline


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-images", "1280"], "--num-images 1280 is too few for a Frechet distance of 1280 features"),
        ([], "it is loaded"),  # the default was too few itself
    ],
)
def test_numbers_of_images(scripts, monkeypatch, capsys, tmp_path, options, words):
    def load(place):
        raise ValueError("it is loaded")

    script = scripts("study_condition")
    monkeypatch.setattr(DiffusionBridgeVQPipeline, "from_pretrained", load)
    output = ["--output", str(tmp_path / "sheet.png")]
    monkeypatch.setattr(sys, "argv", ["study_condition.py", "P", "--dataset", "digits", *output, *options])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert words in capsys.readouterr().err
