"""Outputs are checked before the work, so that no result is lost."""

import tempfile
from pathlib import Path

from PIL import Image


def check_output_folder(folder: Path) -> None:
    """
    Before the work: can files be written into `folder`? Nothing stays behind.

    Raises:
        ValueError: it, or a folder above it, is a file or can't be written.
    """
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise ValueError(f"{folder} can't be a folder: {place} is a file. Give another output.")
        with tempfile.TemporaryDirectory(dir=place) as inside:  # with the longest names that it will have
            (Path(inside) / folder.name).mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"Nothing can be written to {folder}: {error.strerror}. Give another output.") from error


def check_output_image(path: Path) -> None:
    """
    Before the work: can a picture be written to `path`?

    Raises:
        ValueError: a folder, a name without the ending of a picture, or as in [`check_output_folder`].
    """
    endings = Image.registered_extensions()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a picture in it, such as {path / 'samples.png'}.")
    if endings.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{path} needs the ending of a picture, such as {path.stem or 'samples'}.png.")
    check_output_folder(path.parent)
