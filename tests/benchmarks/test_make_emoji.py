"""The emoji data set from three small packages that the test writes."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

SMILE = {"unified": "1F600", "image": "1f600.png", "category": "Smileys & Emotion", "name": "GRINNING FACE"}
HAND = {
    "unified": "270B-FE0F",
    "non_qualified": "270B",
    "image": "270b.png",
    "category": "People & Body",
    "name": "RAISED HAND",
    "skin_variations": {
        "1F3FB": {"unified": "270B-1F3FB", "image": "270b-1f3fb.png"},
        "1F3FB-1F3FC": {"unified": "270B-1F3FB-1F3FC", "image": "270b-1f3fb-1f3fc.png"},  # two tones: left out
    },
}
PART = {"unified": "1F3FB", "image": "1f3fb.png", "category": "Component", "name": "SKIN TONE"}


def save(color: tuple[int, ...], path: Path) -> None:
    """The right half of a square in a color; the left half is transparent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    image.paste(color, (64, 0, 128, 128))
    image.save(path)


@pytest.fixture
def make_emoji(scripts):
    return scripts("make_emoji")


@pytest.fixture
def packages(tmp_path) -> list[Path]:
    noto, twemoji, fluent = folders = [tmp_path / name for name in ("noto", "twemoji", "fluent")]
    for name in ("1f600.png", "270b.png", "270b-1f3fb.png", "270b-1f3fb-1f3fc.png", "1f3fb.png"):
        save((255, 0, 0, 255), noto / "img/google/64" / name)
    save((0, 255, 0, 255), twemoji / "img/twitter/64/1f600.png")
    save((0, 0, 255, 255), fluent / "assets/270b.webp")  # by its code without the variation selector
    (noto / "emoji.json").write_text(json.dumps([SMILE, HAND, PART]))
    return folders


def test_rows_have_the_drawings_that_a_style_has(make_emoji, packages):
    rows = list(make_emoji.read_rows(*packages))
    labels = make_emoji.FEATURES["style_and_category"]
    found = [(row["name"], row["tone"], labels.int2str(row["style_and_category"])) for _, row in rows]
    assert found == [
        ("GRINNING FACE", 0, "noto: Smileys & Emotion"),
        ("GRINNING FACE", 0, "twemoji: Smileys & Emotion"),
        ("RAISED HAND", 0, "noto: People & Body"),
        ("RAISED HAND", 0, "fluent-3d: People & Body"),
        ("RAISED HAND", 1, "noto: People & Body"),
    ]
    for split, row in rows:  # every tone and style of an emoji in one split
        assert split == make_emoji.split_of({"GRINNING FACE": "1F600", "RAISED HAND": "270B-FE0F"}[row["name"]])


def test_drawings_are_put_on_white(make_emoji, packages):
    image = Image.open(io.BytesIO(make_emoji.draw_on_white(packages[1] / "img/twitter/64/1f600.png")))
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert image.getpixel((10, 32)) == (255, 255, 255) and image.getpixel((54, 32)) == (0, 255, 0)


def test_a_tenth_of_the_emoji_is_for_testing(make_emoji):
    codes = [f"{number:X}" for number in range(0x1F300, 0x1F300 + 4000)]
    assert sum(make_emoji.split_of(code) == "test" for code in codes) == pytest.approx(400, abs=4 * 19)  # 4 sigma


def test_another_archive_than_the_published_one_is_refused(make_emoji, tmp_path, monkeypatch):
    def pack(command, cwd, **_):
        with tarfile.open(cwd / "package.tgz", "w:gz"):
            pass

    monkeypatch.setattr(subprocess, "run", pack)
    with pytest.raises(ValueError, match="SHA-512"):
        make_emoji.fetch("emoji-datasource-google@16.0.0", tmp_path)
