"""What a disk has room for."""

import os
from pathlib import Path


def free_inodes(place: Path) -> int | None:
    """How many more files the disk of a folder can hold; None if it doesn't say."""
    if not hasattr(os, "statvfs"):  # Windows
        return None
    found = os.statvfs(place)
    return found.f_favail if found.f_files else None


def existing_place(folder: Path) -> Path:
    """The folder itself, or the nearest place above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
