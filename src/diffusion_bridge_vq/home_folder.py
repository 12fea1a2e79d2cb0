"""`~` in paths that people type."""

import os
from pathlib import Path


def expand_home(place: str | os.PathLike[str]) -> Path:
    """
    A path with `~` or `~user` expanded, also where the shell doesn't do it, as in `--output-dir=~/x`.

    Raises:
        ValueError: there is no such user. Without this, a folder would be made that is named `~user`.
    """
    path = Path(place)
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"{path} begins with the home folder of {path.parts[0][1:]!r}, a user that isn't known here: correct it, "
            f"or write ./{path} for a folder of this name."
        ) from None
