"""Trajectories against the sampler that draws them, and students that learn from them."""

import json
import shlex
import shutil
import sys

import datasets
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_models import make_autoencoder, make_unet
from tiny_run import SETTINGS, assert_same_state, stopped_at_a_checkpoint
from torch import nn

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.commands import distill as distill_command
from diffusion_bridge_vq.commands import draw_trajectories as draw_trajectories_command
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.pipelines import build_pipeline
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.training import DistillConfig, build_objective, draw_trajectories, train
from diffusion_bridge_vq.training.objectives.distillation import DistillObjective, make_student_scheduler

BRIDGE = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "eta": 2.0, "prediction_type": "sample"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with an untrained bridge of three classes, for images 8 x 8."""
    torch.manual_seed(0)
    vqvae = make_autoencoder(sample_size=8, in_channels=1, out_channels=1).eval()
    unet = make_unet(sample_size=4, num_class_embeds=4).eval()
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    names = {0: "zero", 1: "one", 2: "two"}
    DiffusionBridgeVQPipeline(vqvae, unet, OUBridgeScheduler(**BRIDGE), names).save_pretrained(folder)
    return folder


def draw(teacher, folder, **changes):
    pipe = DiffusionBridgeVQPipeline.from_pretrained(teacher)
    options = {"num_trajectories": 600, "num_inference_steps": 6, "guidance_scale": 2.0, "precision": "float32"}
    options["batch_size"] = 512
    options["class_names"] = list(pipe.id2label.values())
    return draw_trajectories(folder=folder, accelerator=Accelerator(cpu=True), **pipe.components | options | changes)


@pytest.fixture(scope="module")
def trajectories(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    draw(teacher, folder)
    return folder


def config(folder, teacher, trajectories, **changes):
    settings = SETTINGS | {"batch_size": 100, "init_from": teacher, "trajectories": trajectories}
    return DistillConfig.from_preset("digits", output_dir=folder, **settings | changes)


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
    assert not (tmp_path / "new").exists()


def test_the_next_command_works_as_it_is(teacher, tmp_path, monkeypatch, capsys):
    options = ["--num-trajectories", "128", "--num-inference-steps", "2", "--output-dir", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["dbvq draw-trajectories", str(teacher), *options])
    draw_trajectories_command.main()
    line = capsys.readouterr().out.split("Next:\n")[1].partition("  #")[0]
    command, verb, *arguments = shlex.split(line)
    assert (command, verb) == ("dbvq", "distill")
    monkeypatch.setattr(sys, "argv", ["dbvq distill", *arguments, "--dry-run"])
    distill_command.main()
    assert str(tmp_path / "new-student") in arguments and not (tmp_path / "new-student" / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------- teachers of words


@pytest.fixture(scope="module")
def teacher_of_words(teacher, tmp_path_factory):
    """The same network, whose three classes are the words "zero", "one" and "two"."""
    folder = shutil.copytree(teacher, tmp_path_factory.mktemp("words") / "tiny")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"label_words": True}))
    return folder


@pytest.fixture(scope="module")
def texts_on_disk(tmp_path_factory):
    """Six images of three texts, which two columns make."""
    folder = tmp_path_factory.mktemp("texts")
    images = [Image.new("L", (8, 8), 40 * i) for i in range(6)]
    names = {"name": ["Zero", "one", "two"] * 2, "kind": ["one", "two", "two"] * 2}
    table = datasets.Dataset.from_dict(
        {"image": images, **names},
        features=datasets.Features(
            {"image": datasets.Image(), "name": datasets.Value("string"), "kind": datasets.Value("string")}
        ),
    )
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_texts_are_drawn_with_all_their_words(teacher_of_words, tmp_path):
    draw(teacher_of_words, tmp_path, num_trajectories=200, texts=["Zero, one!", "two", "Zero, one!"])
    rows, pipe = EncodedImages(tmp_path), DiffusionBridgeVQPipeline.from_pretrained(teacher_of_words)
    assert rows.class_names == ["Zero, one!", "two", ""] and rows.words == ["zero", "one", "two"]
    labels = [rows[i]["labels"].item() for i in range(200)]
    counts = [labels.count(number) for number in range(3)]
    assert 5 < counts[2] < 40 and abs(counts[0] - counts[1]) < 30 and sum(counts) == 200
    vectors = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # the last has no words
    table = pipe.unet.class_embedding.weight
    for number in range(3):
        found = rows[labels.index(number)]["trajectories"]
        start = found[None, 0] / pipe.scheduler.stationary_std
        pipe.unet.class_embedding.weight.data = torch.cat([vectors[number, None] @ table, table[1:]])
        z_0 = sample_latents(
            pipe.unet,
            pipe.scheduler,
            start.shape,
            6,
            latents=start,
            class_labels=torch.tensor([0]),  # the one row in which the sum is now
            guidance_scale=2.0,
        )
        pipe.unet.class_embedding.weight.data = table
        torch.testing.assert_close(found[-1:], z_0, atol=1e-4, rtol=1e-4)


def test_a_student_of_words_is_trained_by_the_commands_and_draws_texts(
    teacher_of_words, texts_on_disk, tmp_path, monkeypatch, capsys
):
    def call(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["dbvq", *map(str, arguments)])
        command.main()

    options = ["--num-trajectories", 64, "--num-inference-steps", 4, "--guidance-scale", 1.5]
    data = ["--dataset", texts_on_disk, "--label-column", "name,kind"]
    call(draw_trajectories_command, teacher_of_words, *options, *data, "--output-dir", tmp_path / "drawn")
    rows = EncodedImages(tmp_path / "drawn")
    assert rows.class_names == ["Zero, one", "one, two", "two, two", ""]
    steps = ["--max-train-steps", 4, "--batch-size", 16, "--lr-warmup-steps", 0, "--image-every", 2]
    given = ["--init-from", teacher_of_words, "--trajectories", tmp_path / "drawn", "--output-dir", tmp_path / "run"]
    call(distill_command, *given, *steps)
    assert "64 encoded images, 8 x 8 gray, 3 texts" in capsys.readouterr().out
    pipe = DiffusionBridgeVQPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.id2label == {0: "zero", 1: "one", 2: "two"} and pipe.config.label_words  # in the teacher's order
    assert set(pipe.label_examples) == {"Zero, one", "one, two", "two, two"}
    assert pipe.scheduler.config.distilled_guidance_scale == 1.5
    latents = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def drawn(text):
        return pipe(class_labels=[text], latents=latents, output_type="latent").images

    assert torch.equal(drawn("two ONE"), drawn("one, two")) and not torch.equal(drawn("two"), drawn("one, two"))
    with pytest.raises(ValueError, match="doesn't know 'three'"):
        drawn("three")


def test_the_loss_of_a_text_is_that_of_its_words(teacher_of_words, tmp_path):
    """A student whose words have the vector of one class learns from "zero one" as from that class."""
    draw(teacher_of_words, tmp_path, num_trajectories=8, texts=["zero one"], class_dropout=0.0)
    objective = build_objective(config(tmp_path / "run", teacher_of_words, tmp_path))
    batch = EncodedImages(tmp_path).__getitems__(list(range(8)))["trajectories"]
    table = objective.unet.class_embedding.weight

    def loss(labels):
        torch.manual_seed(0)
        return objective(batch, labels).losses["distillation"].item()

    together = loss(torch.tensor([[1.0, 1, 0, 0]]).repeat(8, 1))
    with torch.no_grad():
        table[2] = table[0] + table[1]
    assert loss(torch.full((8,), 2)) == pytest.approx(together, rel=1e-5)
    assert loss(torch.full((8,), 0)) != pytest.approx(together, rel=1e-3)


def test_samples_of_a_run_are_of_its_texts(teacher_of_words, tmp_path):
    """The first with the vector of "one two", the second with that of "zero", whatever the noise."""
    draw(teacher_of_words, tmp_path, num_trajectories=8, texts=["one two", "zero"])
    objective = build_objective(config(tmp_path / "run", teacher_of_words, tmp_path)).eval()
    vectors = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0]])
    objective.sample_labels, seen = vectors, []
    table = objective.unet.class_embedding
    table.register_forward_hook(lambda _, given, __: seen.append(given[0].clone()))
    objective.draw_samples(objective.components({}), 3, 4)
    assert torch.equal(torch.cat(seen), vectors[[0, 1, 0]])


def test_texts_are_drawn_in_a_random_order(teacher_of_words, tmp_path):
    """So that fewer trajectories than texts are of all kinds of texts: not of the first ones alone."""
    texts = [f"{'zero ' * (n % 2)}{'one ' * (n // 2 % 2)}two {'!' * n}" for n in range(300)]
    draw(teacher_of_words, tmp_path, num_trajectories=100, texts=texts, class_dropout=0.0, num_inference_steps=1)
    labels = [item["labels"].item() for item in map(EncodedImages(tmp_path).__getitem__, range(100))]
    assert len(set(labels)) == 100 and 110 < sum(labels) / 100 < 190  # 149.5, with a standard deviation of 7


@pytest.mark.parametrize("batch_size", [7, 64])
def test_a_part_that_is_drawn_again_is_the_same_in_other_batches(teacher_of_words, tmp_path, batch_size):
    options = {"num_trajectories": 40, "texts": ["two", "zero one"], "num_inference_steps": 1}
    draw(teacher_of_words, tmp_path / "one", **options, batch_size=40)
    draw(teacher_of_words, tmp_path / "other", **options, batch_size=batch_size)
    one, other = (EncodedImages(tmp_path / name).__getitems__(list(range(40))) for name in ("one", "other"))
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["trajectories"], other["trajectories"], atol=1e-5, rtol=1e-5)


def test_names_of_the_teacher_that_have_changed(teacher, teacher_of_words, tmp_path):
    """The student would have the old ones."""
    draw(teacher_of_words, tmp_path / "words", num_trajectories=8, texts=["one two", "zero"])
    draw(teacher, tmp_path / "classes", num_trajectories=8)
    index = json.loads((teacher_of_words / "model_index.json").read_text())
    swapped = {"id2label": {"0": "two", "1": "one", "2": "zero"}}
    for change, drawn in (
        (swapped, "words"),
        ({"label_words": None}, "words"),
        ({}, "classes"),
        ({"label_words": None} | swapped, "classes"),
    ):
        other = shutil.copytree(teacher_of_words, tmp_path / "other", dirs_exist_ok=True)
        (other / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(ValueError, match=f"were drawn for other {drawn} than .* has now: draw them again"):
            build_objective(config(tmp_path / "run", other, tmp_path / drawn))


@pytest.mark.parametrize("changes", [{"words": []}, {"words": ["one", "one", "two"]}, {"class_names": None}])
def test_words_that_no_encoding_has(teacher_of_words, tmp_path, changes):
    draw(teacher_of_words, tmp_path, num_trajectories=8, texts=["one two"])
    file = tmp_path / "encoding.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match="doesn't describe encoded images"):
        EncodedImages(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_no_text_has(teacher_of_words, tmp_path, label, monkeypatch):
    """-1 would count from the end."""
    draw(teacher_of_words, tmp_path, num_trajectories=8, texts=["one two"])
    read = EncodedImages._read

    def damaged(self, shards):
        columns = read(self, shards)
        columns["label"][3] = label
        return columns

    monkeypatch.setattr(EncodedImages, "_read", damaged)
    with pytest.raises(ValueError, match=r"labels of trajectories of a bridge must lie in 0\.\.1, got"):
        EncodedImages(tmp_path)


def test_other_texts_are_named_in_a_short_line(teacher_of_words, tmp_path):
    texts = [f"two {'!' * n}" for n in range(1, 300)]
    draw(teacher_of_words, tmp_path, num_trajectories=8, texts=texts)
    with pytest.raises(ValueError, match=r"class_names\[7\] 'two !{8}', not 'zero'") as caught:
        draw(teacher_of_words, tmp_path, num_trajectories=8, texts=[*texts[:7], "zero", *texts[8:]])
    assert len(str(caught.value)) < 400


def test_what_a_teacher_of_words_needs(teacher, teacher_of_words, texts_on_disk, tmp_path, monkeypatch, capsys):
    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", ["draw", *map(str, arguments), "--output-dir", str(tmp_path / "new")])
        with pytest.raises(SystemExit):
            draw_trajectories_command.main()
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err

    assert "draws from words: name the `--dataset`" in refused(teacher_of_words)
    assert "drop `--dataset`" in refused(teacher, "--dataset", texts_on_disk)
    assert "drop `--dataset`" in refused(teacher, "--label-column", "name")
    assert "has no texts as labels: name the column" in refused(teacher_of_words, "--dataset", texts_on_disk)
    with pytest.raises(ValueError, match="got 0 names for 3 classes"):
        draw(teacher_of_words, tmp_path / "new", texts=["two"], class_names=None)
    with pytest.raises(ValueError, match=r"must be a list of texts, got \[3\]"):
        draw(teacher_of_words, tmp_path / "new", texts=[3])
    with pytest.raises(ValueError, match=r"at least one word each, got 1 without one, such as '!'"):
        draw(teacher_of_words, tmp_path / "new", texts=["two", "!"])
    with pytest.raises(ValueError, match=r"at least one word each, got none"):
        draw(teacher_of_words, tmp_path / "new", texts=[])
    with pytest.raises(ValueError, match="doesn't know 'twos'"):
        draw(teacher_of_words, tmp_path / "new", texts=["twos"])
    assert not (tmp_path / "new").exists()


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
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/distillation"] for line in lines if "loss/distillation" in line]
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trajectories": None}, "give both"),
        ({"streaming": True}, "can't be streamed"),
        ({"validation_split": "test"}, "not on images: drop `validation_split`"),
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
