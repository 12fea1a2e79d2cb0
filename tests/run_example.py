"""The scripts of examples/ as commands."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_example(script: str, *arguments) -> subprocess.CompletedProcess:
    """What examples/`script` did with `arguments`, on one thread; its output as text."""
    return subprocess.run(
        [sys.executable, ROOT / "examples" / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )
