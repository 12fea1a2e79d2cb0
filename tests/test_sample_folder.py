"""Folders of drawn images: each image depends on the seed and its number alone; what is there stays."""

import errno
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_models import make_conditioned_pipeline, make_pipeline

from diffusion_bridge_vq import sample_folder
from diffusion_bridge_vq.sample_folder import draw_into_folder, image_path
from diffusion_bridge_vq.sampling import generators_for

CALL = {"num_inference_steps": 2, "solver": "ancestral"}


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(classes=4)


def draw(pipe, folder, num_images=7, **options):
    options = {"batch_size": 3, "accelerator": Accelerator(cpu=True)} | CALL | options
    return draw_into_folder(pipe, folder, num_images=num_images, **options)


def pixels(folder, count=7):
    return np.stack([np.asarray(Image.open(image_path(folder, number))) for number in range(count)]).astype(int)


@pytest.fixture
def drawn(pipe, tmp_path):
    draw(pipe, tmp_path / "drawn", npz=True, class_labels=[2, 0], seed=3)
    return tmp_path / "drawn"


def test_an_image_is_that_of_the_pipeline_with_its_own_generator(pipe, drawn):
    found = pixels(drawn)
    for number in (0, 4, 6):
        (generator,) = generators_for(3, [number])
        (alone,) = pipe(1, generator=generator, class_labels=[2, 0][number % 2], **CALL).images
        assert np.abs(found[number] - np.asarray(alone)).max() <= 1
    assert len({image.tobytes() for image in found}) == 7
    with Image.open(drawn / "grid.png") as grid:
        assert grid.size == (3 * (60 + 4), 3 * (60 + 4))


def test_no_two_images_of_a_set_have_one_seed():
    """Of the 32 bits that the CPU's generator looks at; hashes would meet with probability 0.25."""
    seeds = [generator.initial_seed() for generator in generators_for(0, range(50_000))]
    assert len(set(seeds)) == 50_000 and max(seeds) < 2**32
    first = torch.randn(20_000, generator=generators_for(0, [0])[0])
    second = torch.randn(20_000, generator=generators_for(0, [1])[0])
    assert abs(float((first * second).mean())) < 4 / 20_000**0.5


def test_the_single_file_is_read_as_guided_diffusion_reads_it(drawn):
    with np.load(drawn / "images.npz") as archive:
        assert archive["arr_0"].dtype == np.uint8 and (archive["arr_0"] == pixels(drawn)).all()
        assert archive["arr_1"].tolist() == [2, 0, 2, 0, 2, 0, 2]


def test_gray_images_have_three_channels_in_the_single_file(tmp_path):
    draw(make_pipeline(channels=1), tmp_path / "a", 2, npz=True)
    with np.load(tmp_path / "a" / "images.npz") as archive:
        assert archive["arr_0"].shape == (2, 6, 6, 3) and "arr_1" not in archive
        assert (archive["arr_0"] == pixels(tmp_path / "a", 2)[..., None]).all()


def test_what_is_missing_or_cut_off_is_drawn_again_and_nothing_else(pipe, drawn):
    before, times = pixels(drawn), {path: path.stat().st_mtime_ns for path in (drawn / "images").iterdir()}
    image_path(drawn, 1).unlink()
    image_path(drawn, 5).write_bytes(image_path(drawn, 5).read_bytes()[:-4])
    (drawn / "images" / ".0000001.png.partial").touch()
    draw(pipe, drawn, batch_size=7, class_labels=[2, 0], seed=3)
    assert np.abs(pixels(drawn) - before).max() <= 1
    again = {path for path in (drawn / "images").iterdir() if times.get(path) != path.stat().st_mtime_ns}
    assert again == {image_path(drawn, 1), image_path(drawn, 5)}
    draw(pipe, drawn, 9, class_labels=[2, 0], seed=3)  # more of them
    assert np.abs(pixels(drawn, 9)[:7] - before).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, "other settings .seed 3 then, 4 now"),
        ({"class_labels": [1]}, r"class_labels \[2, 0\] then, \[1\] now"),
        ({"solver": "ddim"}, "solver 'ancestral' then, 'ddim' now"),
        ({"pipe": None}, "weights .* then"),
        ({"num_images": 6}, "is for 7 images, more than 6"),
    ],
)
def test_other_settings_are_refused(pipe, drawn, options, message):
    before = (drawn / "sampling.json").read_bytes()
    model = make_pipeline(classes=4, num_train_timesteps=30) if "pipe" in options else pipe
    settings = {"class_labels": [2, 0], "seed": 3} | {k: v for k, v in options.items() if k != "pipe"}
    with pytest.raises(ValueError, match=message):
        draw(model, drawn, **settings)
    assert (drawn / "sampling.json").read_bytes() == before and image_path(drawn, 6).exists()


def test_a_refused_call_does_not_keep_the_folder(pipe, tmp_path):
    with pytest.raises(ValueError, match="`num_inference_steps` must be"):
        draw(pipe, tmp_path / "a", num_inference_steps=5000)
    draw(pipe, tmp_path / "a", 1)
    assert json.loads((tmp_path / "a" / "sampling.json").read_text())["num_inference_steps"] == 2


def test_each_is_drawn_from_its_picture_in_turn(tmp_path):
    """Three pictures; drawn alone by hand, and again in other batches after some were lost."""
    pipe = make_conditioned_pipeline()
    given, folder = list(torch.rand(3, 1, 8, 8).mul(255).round().div(255)), tmp_path / "a"
    draw(pipe, folder, conditions=given)
    before = pixels(folder)
    for number in (1, 5, 6):
        (generator,) = generators_for(0, [number])
        (alone,) = pipe(condition=given[number % 3], generator=generator, **CALL).images
        assert np.abs(before[number] - np.asarray(alone)).max() <= 1
    for number in (2, 3, 5):
        image_path(folder, number).unlink()
    draw(pipe, folder, conditions=given, batch_size=2)
    assert np.abs(pixels(folder) - before).max() <= 1
    assert np.abs(before[0] - before[3]).max() > 1  # one picture, other noise
    with pytest.raises(ValueError, match=r"other settings .conditions '.*' then, '.*' now"):
        draw(pipe, folder, conditions=given[::-1])


def test_texts_of_words_are_no_numbers_in_the_single_file(tmp_path):
    pipe = make_pipeline(classes=4)
    pipe = type(pipe)(**pipe.components, id2label={0: "red", 1: "blue", 2: "cat"}, label_words=True)
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, tmp_path / "a", 2, npz=True, class_labels=["red cat", "blue"])
    with np.load(tmp_path / "a" / "images.npz") as archive:
        assert archive.files == ["arr_0"]


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"num_images": "many"})])
def test_folders_of_something_else_are_refused(pipe, tmp_path, content):
    (tmp_path / ("notes.txt" if content is None else "sampling.json")).write_text(content or "")
    with pytest.raises(
        ValueError, match=r"isn't empty: it holds notes\.txt" if content is None else "doesn't describe"
    ):
        draw(pipe, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_loses_nothing(pipe, tmp_path, monkeypatch):
    save, calls = Image.Image.save, []

    def full(self, path, *arguments):
        calls.append(path)
        save(self, path, *arguments)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"0000004\.png can't be written: No space left"):
        patch.setattr(Image.Image, "save", full)
        draw(pipe, tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a" / "images").iterdir()) == [f"{i:07}.png" for i in range(4)]
    draw(pipe, tmp_path / "a")
    assert pixels(tmp_path / "a").shape == (7, 6, 6, 3)


def test_a_folder_in_use_is_refused(pipe, tmp_path, monkeypatch):
    from diffusion_bridge_vq.run_folder import RunFolder

    lock = sample_folder.run_lock
    monkeypatch.setattr(sample_folder, "run_lock", lambda run: lock(run, 0.1))
    with lock(RunFolder(tmp_path / "a")), pytest.raises(ValueError, match="Another run writes into"):
        draw(pipe, tmp_path / "a")
