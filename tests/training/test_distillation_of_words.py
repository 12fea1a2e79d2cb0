"""Students of teachers that draw from words: which texts are drawn, what they learn from, and what is refused."""

import json
import shutil
import sys

import datasets
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from tiny_teacher import config, draw, save_teacher

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.commands import distill as distill_command
from diffusion_bridge_vq.commands import draw_trajectories as draw_trajectories_command
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.training import build_objective, trajectories


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def teacher_of_words(tmp_path_factory):
    """The same network, whose three classes are the words "zero", "one" and "two"."""
    return save_teacher(tmp_path_factory.mktemp("words") / "tiny", label_words=True)


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
    (shard,) = (tmp_path / "data").iterdir()
    assert "Zero" not in str(parquet.read_schema(shard).metadata)  # encoding.json has the texts, once
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


@pytest.mark.parametrize(("count", "said"), [(2, True), (3, False)])
def test_fewer_trajectories_than_texts_are_said(
    teacher_of_words, texts_on_disk, tmp_path, monkeypatch, capsys, count, said
):
    options = ["--num-trajectories", count, "--num-inference-steps", 1, "--guidance-scale", 1]
    options += ["--dataset", texts_on_disk, "--label-column", "name,kind", "--output-dir", tmp_path / "drawn"]
    monkeypatch.setattr(sys, "argv", ["dbvq draw-trajectories", *map(str, [teacher_of_words, *options])])
    draw_trajectories_command.main()
    line = f"has 3 different texts, so {count} trajectories leave some out; take more `--num-trajectories`."
    assert (line in capsys.readouterr().out) == said


@pytest.mark.parametrize("batch_size", [7, 64])
def test_a_part_that_is_drawn_again_is_the_same_in_other_batches(teacher_of_words, tmp_path, batch_size):
    options = {"num_trajectories": 40, "texts": ["two", "zero one"], "num_inference_steps": 1}
    draw(teacher_of_words, tmp_path / "one", **options, batch_size=40)
    draw(teacher_of_words, tmp_path / "other", **options, batch_size=batch_size)
    one, other = (EncodedImages(tmp_path / name).__getitems__(list(range(40))) for name in ("one", "other"))
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["trajectories"], other["trajectories"], atol=1e-5, rtol=1e-5)


def test_interrupted_drawing_of_texts_goes_on_and_ends_equal(teacher_of_words, tmp_path, monkeypatch):
    options = {"num_trajectories": 600, "texts": ["two", "zero one"], "num_inference_steps": 1, "batch_size": 50}
    draw(teacher_of_words, tmp_path / "whole", **options)
    batches = 0

    def stop_in_the_second_shard(*arguments, **named):
        nonlocal batches
        batches += 1
        if batches == 12:
            raise KeyboardInterrupt
        return walk(*arguments, **named)

    walk = trajectories.sample_latents
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trajectories, "sample_latents", stop_in_the_second_shard)
        draw(teacher_of_words, tmp_path / "parts", **options)
    assert len(list((tmp_path / "parts").rglob("*.parquet"))) == 1
    draw(teacher_of_words, tmp_path / "parts", **options)
    whole, parts = (sorted((tmp_path / name).rglob("*.parquet")) for name in ("whole", "parts"))
    assert [file.read_bytes() for file in parts] == [file.read_bytes() for file in whole] and len(whole) == 2


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
