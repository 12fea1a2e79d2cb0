"""Runs the `client_*.py` of this folder in a process that talks to a test Hub (see `conftest.py`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_bridge_vq

CLIENTS = sorted(str(path) for path in Path(__file__).parent.glob("client_*.py"))


@pytest.mark.slow
def test_hub(tmp_path):
    root = str(Path(diffusion_bridge_vq.__file__).parents[1])
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTEST_"))}
    env |= {"TEST_HUB_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join([root, env.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", *CLIENTS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
