"""Paths that people type: which text means a local folder, and what exists near one that doesn't."""

import difflib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

HUB_PREFIX = "hf://datasets/"
# How far a suggestion looks: entries of a folder, and folders whose entries are looked at, too.
MAX_ENTRIES = 1000
MAX_FOLDERS = 100
# How similar a name has to be, of 1.
CUTOFF = 0.6
MAX_NAMES = 5


def looks_local(text: str | Path) -> bool:
    """
    Whether `text` means a local path rather than the id of a repository on the Hub ("name" or "user/name"): it exists,
    it can't be an id, or its parent folder exists.
    """
    typed = str(text)
    if "://" in typed:
        return False
    path = Path(os.path.expanduser(typed))
    if path.is_absolute() or typed.startswith((".", "~")) or typed.endswith("/") or re.search(r"[\\\0]", typed):
        return True
    return len(path.parts) > 2 or os.path.lexists(path) or (len(path.parts) == 2 and os.path.isdir(path.parent))


def suggest_path(text: str | Path, containing: str | None = None) -> str:
    """
    A sentence for an error message about a folder that isn't there, or isn't of the right kind.

    Args:
        text (`str` or `Path`): what was given.
        containing (`str`, *optional*): suggest only folders that hold a file of this name, such as
            "model_index.json".

    Returns:
        `str`: "Did you mean 'data/toys'?" for a similar name; else which folders the nearest existing one holds; ""
        where there is nothing to say.
    """
    path = Path(os.path.expanduser(text))
    try:
        parent = path
        while not os.path.isdir(parent):
            parent = parent.parent
        found = sorted(_folders_in(parent, 2, containing))
    except (OSError, ValueError):  # such as a name that is too long, or with a null character
        return ""
    missing = path.relative_to(parent)
    if missing.parts:
        scores = {folder: _similarity(missing, folder.relative_to(parent)) for folder in found}
        best = max(found, key=scores.__getitem__, default=None)  # the first of equals
        if best is not None and scores[best] >= CUTOFF:
            return f"Did you mean {str(best)!r}?"
        # What is in the folder that the program runs in, or in the root, says little.
        if parent in (Path(), Path(parent.anchor)):
            return ""
    if containing is None:
        found = [folder for folder in found if folder.parent == parent]
    if not found:
        return ""
    names = ", ".join(repr(str(folder)) for folder in found[:MAX_NAMES])
    more = f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else ""
    return f"There {'is' if len(found) == 1 else 'are'} {names}{more}."


def _folders_in(parent: Path, depth: int, containing: str | None) -> Iterator[Path]:
    """The folders inside `parent`, at most `depth` levels down; with `containing` only those that hold this file."""
    with os.scandir(parent) as entries:
        folders = [
            parent / entry.name
            for entry in itertools.islice(entries, MAX_ENTRIES)
            if not entry.name.startswith(".") and _is_folder(entry)
        ]
    for folder in sorted(folders)[:MAX_FOLDERS]:
        if containing is None or (folder / containing).is_file():
            yield folder
        if depth > 1:
            try:
                yield from _folders_in(folder, depth - 1, containing)
            except OSError:
                continue


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a circle of links
        return False


def _similarity(missing: Path, candidate: Path) -> float:
    """Of two paths relative to one folder, 0 to 1; the name alone counts a little less than the whole path."""

    def ratio(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()

    by_name = max(ratio(missing.name, part) for part in candidate.parts)
    return max(ratio(missing.as_posix(), candidate.as_posix()), 0.9 * by_name)
