"""
Make the emoji data set: 64 x 64 drawings in three styles, as parquet files in the layout of a Hub data set.

    python benchmarks/make_emoji.py --output-dir data/emoji

It needs npm, and fetches three packages of fixed versions, whose hashes are checked:

- emoji-datasource-google 16.0.0: Noto Emoji by Google, Apache 2.0
- emoji-datasource-twitter 16.0.0: Twemoji by Twitter and contributors, CC BY 4.0
- @lobehub/fluent-emoji-3d 1.1.0: Fluent Emoji by Microsoft, MIT

You may share a model that is trained on them, and its samples, if you credit the three.
"""

import argparse
import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

# name and version of a package, its folder of emoji, and the SHA-512 of its archive as npm publishes it
PACKAGES = {
    "emoji-datasource-google@16.0.0": (
        "noto",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "emoji-datasource-twitter@16.0.0": (
        "twemoji",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "fluent-3d",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
}
STYLES = [style for style, _ in PACKAGES.values()]
CATEGORIES = [
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
]
SIDE = 64
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=CATEGORIES),
        "style": datasets.ClassLabel(names=STYLES),
        "style_and_category": datasets.ClassLabel(names=[f"{s}: {c}" for s in STYLES for c in CATEGORIES]),
        "name": datasets.Value("string"),
        "tone": datasets.Value("int8"),  # of the skin: 1 to 5, 0 for none
    }
)


def fetch(package: str, folder: Path) -> Path:
    """
    Download a package with npm and unpack it.

    Returns:
        `Path`: the folder with the package's files.

    Raises:
        ValueError: npm isn't installed or finds no such package; the archive has another hash than `PACKAGES` says.
    """
    style, expected = PACKAGES[package]
    folder = folder / style
    folder.mkdir()
    try:
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"npm could not fetch {package} ({error}). Install npm, or check the connection.") from error
    (archive,) = folder.glob("*.tgz")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != expected:
        raise ValueError(f"{package} has the SHA-512 {found}, expected {expected}. Its files aren't used.")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()
    return folder / "package"


def draw_on_white(file: Path) -> bytes:
    """The picture in `file`, 64 x 64 on white, as PNG."""
    with Image.open(file) as opened:
        image = opened.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").save(
        data, "PNG", optimize=True
    )
    return data.getvalue()


def split_of(unified: str) -> str:
    """The split of an emoji, by its code points: all styles and skin tones of it are in the same one."""
    return "test" if int(hashlib.sha256(unified.encode()).hexdigest(), 16) % 10 == 0 else "train"


def read_rows(noto: Path, twemoji: Path, fluent: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Split and row of each drawing in the three unpacked packages."""
    for entry in json.loads((noto / "emoji.json").read_text(encoding="utf-8")):
        if entry["category"] not in CATEGORIES:
            continue
        category = CATEGORIES.index(entry["category"])
        variants = [variant for tones, variant in entry.get("skin_variations", {}).items() if "-" not in tones]
        for tone, variant in enumerate([entry, *variants]):
            codes = [code.lower() for code in (variant["unified"], variant.get("non_qualified")) if code]
            files = [
                [noto / "img/google/64" / variant["image"]],
                [twemoji / "img/twitter/64" / variant["image"]],
                [fluent / "assets" / f"{code}.webp" for code in codes],
            ]
            for style, places in enumerate(files):
                file = next((place for place in places if place.exists()), None)
                if file is None:
                    continue
                yield (
                    split_of(entry["unified"]),
                    {
                        "image": {
                            "bytes": draw_on_white(file),
                            "path": f"{STYLES[style]}-{variant['unified'].lower()}.png",
                        },
                        "label": category,
                        "style": style,
                        "style_and_category": style * len(CATEGORIES) + category,
                        "name": entry["name"],
                        "tone": tone,
                    },
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder that gets the two parquet files")
    output = parser.parse_args().output_dir
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    with tempfile.TemporaryDirectory() as folder:
        for split, row in read_rows(*(fetch(package, Path(folder)) for package in PACKAGES)):
            rows[split].append(row)
    for split, items in rows.items():
        data = datasets.Dataset.from_list(items, features=FEATURES).shuffle(seed=0)
        data.to_parquet(output / f"{split}-00000-of-00001.parquet")
        print(f"{split}: {len(data)} drawings")


if __name__ == "__main__":
    main()
