"""The scripts of examples/ as commands."""

import subprocess
from pathlib import Path

from warm_processes import Script

ROOT = Path(__file__).parents[1]


def run_example(script: str, *arguments, **options) -> subprocess.CompletedProcess[str]:
    """What examples/`script` did with `arguments`, and its output; `options` are those of [`Script`]."""
    return Script(ROOT / "examples" / script, *arguments, **options).end()
