"""benchmarks/study_distillation.py: what can't be compared is refused before hours of work."""

import sys
from argparse import Namespace

import pytest
from tiny_models import make_gray_pipeline, make_student_pipeline, make_unet

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler


@pytest.fixture
def script(scripts):
    return scripts("study_distillation")


def make_teacher(classes: int) -> DiffusionBridgeVQPipeline:
    pipe = make_gray_pipeline()
    unet = make_unet(sample_size=4, in_channels=2, out_channels=2, num_class_embeds=classes + 1).eval()
    return DiffusionBridgeVQPipeline(pipe.vqvae, unet, OUBridgeScheduler(prediction_type="sample"))


@pytest.mark.parametrize(
    ("make", "seconds", "message"),
    [
        (lambda: make_teacher(4), 1.0, "has 4 classes or words, and digits has 10 classes"),
        (lambda: make_teacher(10), 0.0, "--seconds must be positive"),
        (make_student_pipeline, 1.0, "is a student itself"),
        (make_gray_pipeline, 1.0, "`prediction_type` must be 'sample' or 'v_prediction'"),
    ],
)
def test_refused_before_work(script, make, seconds, message):
    with pytest.raises(ValueError, match=message):
        script.check_before_work(make(), Namespace(seconds=seconds, dataset="digits", split="train"))


def test_the_classes_of_the_data_are_taken(script):
    script.check_before_work(make_teacher(10), Namespace(seconds=1.0, dataset="digits", split="train"))


def test_a_number_of_steps_that_no_student_has(script, monkeypatch, capsys):
    """It was found after the first student was trained."""
    monkeypatch.setattr(sys, "argv", ["study_distillation.py", "teacher", "--steps", "1", "5"])
    with pytest.raises(SystemExit):
        script.main()
    assert "invalid choice: 5" in capsys.readouterr().err
