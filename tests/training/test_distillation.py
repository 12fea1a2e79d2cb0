"""Trajectories against the sampler that draws them, and students that learn from them."""

import json
import shlex
import shutil
import sys

import pytest
import torch
from accelerate import Accelerator
from tiny_models import make_autoencoder, make_unet
from tiny_run import assert_same_state, logged, stopped_at_a_checkpoint
from tiny_teacher import BRIDGE, config, draw, save_teacher
from torch import nn

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.commands import distill as distill_command
from diffusion_bridge_vq.commands import draw_trajectories as draw_trajectories_command
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.pipelines import build_pipeline
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.training import DistillConfig, build_objective, draw_trajectories, train
from diffusion_bridge_vq.training.objectives.distillation import DistillObjective, make_student_scheduler


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def trajectories(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    draw(teacher, folder)
    return folder


# ----------------------------------------------------------------------------------------------------- trajectories


def test_rows_are_the_points_and_the_end_of_guided_walks(teacher, trajectories):
    rows, pipe = EncodedImages(trajectories), DiffusionBridgeVQPipeline.from_pretrained(teacher)
    levels, some = rows.encoding.data["timesteps"], [1, 300, 599]
    assert len(rows) == 600 and rows.shape == [len(levels) + 1, 3, 4, 4]
    found, labels = rows[some[0]]["trajectories"], [rows[i]["labels"].item() for i in range(600)]
    assert set(labels) == {-1, 0, 1, 2} and 30 < labels.count(-1) < 90  # a tenth has no class
    for i in some:
        label = torch.tensor([3 if labels[i] == -1 else labels[i]])
        start = rows[i]["trajectories"][None, 0] / pipe.scheduler.stationary_std
        visited = []
        z_0 = sample_latents(
            pipe.unet,
            pipe.scheduler,
            start.shape,
            6,
            latents=start,
            class_labels=label,
            guidance_scale=2.0,
            callback=lambda step, t, z, visited=visited: visited.append(z),
        )
        found = rows[i]["trajectories"]
        torch.testing.assert_close(found[-1:], z_0, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[1:-1], torch.cat(visited[: len(levels) - 1]), atol=1e-4, rtol=1e-4)
    starts = torch.stack([rows[i]["trajectories"][0] for i in range(600)])
    assert abs(starts.std() / pipe.scheduler.stationary_std - 1) < 0.03 and abs(starts.mean()) < 0.03
    snr = pipe.scheduler.signal_to_noise(torch.tensor(levels))
    assert 0.5 * snr[-1].log() <= 2.0 and levels == sorted(levels, reverse=True)


def test_what_is_missing_is_drawn_again_and_equal(teacher, trajectories, tmp_path):
    copy = shutil.copytree(trajectories, tmp_path / "copy")
    second = sorted(copy.glob("data/*.parquet"))[1]
    before = second.read_bytes()
    second.unlink()
    draw(teacher, copy)
    assert second.read_bytes() == before


def test_other_trajectories_do_not_go_into_the_same_folder(teacher, trajectories):
    with pytest.raises(
        ValueError, match=r"another encoding: data \{'fingerprint': '\w+', 'guidance_scale': 2.0\}, not"
    ):
        draw(teacher, trajectories, guidance_scale=1.0)


def test_teachers_of_no_student_are_refused_before_anything_is_drawn(teacher, tmp_path):
    for dropout in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"`class_dropout` must be a finite number in \[0, 1\]"):
            draw(teacher, tmp_path / "new", class_dropout=dropout)
    pipe = DiffusionBridgeVQPipeline.from_pretrained(teacher)
    student = make_student_scheduler(pipe.scheduler, [99, 70, 50, 40, 30], 1.0)
    with pytest.raises(ValueError, match="a student itself"):
        draw(teacher, tmp_path / "new", scheduler=student)
    noise = OUBridgeScheduler(**BRIDGE | {"prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="which no predicted noise can give"):
        draw(teacher, tmp_path / "new", scheduler=noise)
    with pytest.raises(ValueError, match=r"`guidance_scale` 2\.0 needs a teacher with classes"):
        draw(teacher, tmp_path / "new", unet=make_unet(sample_size=4).eval())
    assert not (tmp_path / "new").exists()


def test_the_next_command_works_as_it_is(teacher, tmp_path, monkeypatch, capsys):
    options = ["--num-trajectories", "128", "--num-inference-steps", "2", "--output-dir", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["dbvq draw-trajectories", str(teacher), *options])
    draw_trajectories_command.main()
    said, line = capsys.readouterr().out.split("Next:\n")
    assert "guidance scale 1, since the teacher has no default: its student will draw with that and no other" in said
    line = line.partition("  #")[0]
    command, verb, *arguments = shlex.split(line)
    assert (command, verb) == ("dbvq", "distill")
    monkeypatch.setattr(sys, "argv", ["dbvq distill", *arguments, "--dry-run"])
    distill_command.main()
    assert str(tmp_path / "new-student") in arguments and not (tmp_path / "new-student" / "checkpoints").exists()
    options = [*options[:-1], str(tmp_path / "guided"), "--guidance-scale", "2"]
    monkeypatch.setattr(sys, "argv", ["dbvq draw-trajectories", str(teacher), *options])
    draw_trajectories_command.main()
    assert "no default" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- students


class Exact(nn.Module):
    """The denoiser of N(mean, std^2) in each coordinate, or its probability-flow map (affine) as a student has it."""

    def __init__(self, scheduler, mean, std, student=False):
        super().__init__()
        self.config = make_unet(sample_size=2, in_channels=2, out_channels=2).config
        snr = scheduler.signal_to_noise(torch.arange(len(scheduler)))
        self.signal, self.noise = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
        self.mean, self.std, self.student = mean, std, student

    def forward(self, x, t, class_labels=None):
        signal, noise = (table[t].to(x.dtype).reshape(-1, 1, 1, 1) for table in (self.signal, self.noise))
        variance = signal**2 * self.std**2 + noise**2
        gain = self.std / variance.sqrt() if self.student else signal * self.std**2 / variance
        return self.mean + gain * (x - signal * self.mean)


def test_on_gaussian_data_the_loss_is_least_at_the_closed_form_of_the_flow(tmp_path):
    """Which a student with weights enough would find, so that one step of it is exact."""
    scheduler = OUBridgeScheduler(**BRIDGE | {"num_train_timesteps": 1000, "lambda_max_clipped": 10.0})
    vqvae = make_autoencoder(sample_size=4, in_channels=1, out_channels=1, latent_channels=2).eval()
    draw_trajectories(
        vqvae,
        Exact(scheduler, 0.7, 0.4),
        scheduler,
        tmp_path,
        accelerator=Accelerator(cpu=True),
        num_trajectories=64,
        num_inference_steps=60,
        precision="float32",
    )
    rows = EncodedImages(tmp_path)
    levels, batch = rows.encoding.data["timesteps"], rows.__getitems__(list(range(64)))["trajectories"]
    student = make_student_scheduler(scheduler, levels, 1.0)

    def loss(mean, std):
        torch.manual_seed(0)
        objective = DistillObjective(vqvae, Exact(scheduler, mean, std, student=True), student, levels)
        return objective(batch).losses["distillation"].item()

    least = loss(0.7, 0.4)
    assert least < 2e-5  # the solver's error, of a variance of 0.16
    assert min(loss(0.7, 0.41), loss(0.7, 0.39), loss(0.71, 0.4), loss(0.69, 0.4)) > 3 * least


@pytest.mark.parametrize(
    ("timesteps", "steps"),
    [
        # of 12 steps, even in the log-SNR: -3.0 and -2.3 both have -2.6 (906) as the nearest, so 4 steps were left out
        ([991, 981, 958, 906, 792, 581, 325, 149, 61], [[999], [999, 906], [999, 906, 792], [999, 958, 906, 792]]),
        ([991, 500, 20], [[999], [999, 500]]),  # no student begins a step where hardly any noise is
    ],
)
def test_each_step_of_a_student_has_a_level_of_its_own(timesteps, steps):
    process = {"beta_schedule": "squaredcos_cap_v2", "eta": 2.0 * 2**0.5, "prediction_type": "sample"}
    table = make_student_scheduler(OUBridgeScheduler(**process), timesteps, 2.0).config.few_step_timesteps
    assert table == {str(len(levels)): levels for levels in steps}


def test_a_student_learns_and_draws(teacher, trajectories, tmp_path):
    components = train(config(tmp_path, teacher, trajectories, max_train_steps=30, learning_rate=5e-3, ema_decay=0.5))
    losses = list(logged(tmp_path, "loss/distillation").values())
    assert losses[-1] < 0.7 * losses[0]
    pipe = build_pipeline(components)
    assert pipe.scheduler.config.distilled_guidance_scale == 2.0
    pipe.set_progress_bar_config(disable=True)
    assert pipe(3, class_labels=[0, 1, 2], output_type="latent").images.isfinite().all()
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "zero", "1": "one", "2": "two"}


def test_it_starts_from_its_teacher_and_resumes_bit_for_bit(teacher, trajectories, tmp_path, monkeypatch):
    pipe = DiffusionBridgeVQPipeline.from_pretrained(teacher)
    objective = build_objective(config(tmp_path / "run", teacher, trajectories))
    assert all(torch.equal(a, b) for a, b in zip(objective.unet.parameters(), pipe.unet.parameters(), strict=True))
    train(config(tmp_path / "whole", teacher, trajectories))
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(tmp_path / "parts", teacher, trajectories))
    train(config(tmp_path / "parts", teacher, trajectories, resume=True))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 8, ("model", "ema", "optimizer", "random-0"))


def test_teachers_that_do_not_fit(teacher, trajectories, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "other")
    path = other / "scheduler/scheduler_config.json"
    for change, message in (({"eta": 3.0}, "another network or process"), ({"prediction_type": "epsilon"}, "another")):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match=message):
            build_objective(config(tmp_path / "run", other, trajectories))
    with pytest.raises(ValueError, match="which no predicted noise can give"):
        make_student_scheduler(OUBridgeScheduler(), [999, 500], 1.0)
    student = make_student_scheduler(OUBridgeScheduler(**BRIDGE), [99, 70, 50, 40, 30], 1.0)
    with pytest.raises(ValueError, match="a student itself"):
        make_student_scheduler(student, [99, 50], 1.0)
    shutil.rmtree(other / "unet")
    with pytest.raises(ValueError, match="There is no teacher in"):
        build_objective(config(tmp_path / "run", other, trajectories))


def test_latents_are_no_trajectories(teacher, trajectories, tmp_path):
    latents = shutil.copytree(trajectories, tmp_path / "latents")
    path = latents / "encoding.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"what": "latents"}))
    with pytest.raises(ValueError, match="holds latents, expected trajectories: write them with draw_trajectories"):
        build_objective(config(tmp_path / "run", teacher, latents))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trajectories": None}, "give both"),
        ({"streaming": True}, "can't be streamed"),
        ({"validation_split": "test"}, "not on images: drop `validation_split`"),
        ({"balance_classes": True}, "classes in turn: drop `balance_classes`"),
    ],
)
def test_settings_that_a_student_has_no_use_for(teacher, trajectories, tmp_path, changes, message):
    settings = {"init_from": teacher, "trajectories": trajectories, "output_dir": tmp_path} | changes
    with pytest.raises(ValueError, match=message):
        DistillConfig.from_preset("digits", **settings)


def test_resolution_and_channels_are_the_teachers(teacher, trajectories, tmp_path):
    """The command that draw_trajectories prints has no preset: with that of digits another teacher was refused."""
    options = {"init_from": teacher, "trajectories": trajectories, "output_dir": tmp_path}
    made = DistillConfig.from_preset("cifar10-tiny", **options)
    assert (made.resolution, made.channels) == (8, 1)
    assert DistillConfig.from_preset("digits", **options | {"resolution": 16}).resolution == 16
