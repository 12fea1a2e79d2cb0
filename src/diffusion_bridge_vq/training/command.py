"""What the training scripts share as commands."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """
    Ends a program on a ValueError or OSError (settings, data, disk, the Hub) with its message and status 2, as
    argparse does, where Python would print a traceback. Also decorates a function.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
