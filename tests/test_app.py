"""examples/app.py as a command; tests/page has the page itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_app(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, ROOT / "examples" / "app.py", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_without_the_checkpoint(tmp_path):
    done = run_app(cwd=tmp_path)
    assert done.returncode == 2 and "run this from the repository" in done.stderr


@pytest.mark.slow
def test_a_folder_without_a_model(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio: the extra `demo`")
    done = run_app(str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("app.py: error: ") and "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_gradio(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
    command = [sys.executable, ROOT / "examples" / "app.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "install the extra" in done.stderr and "Traceback" not in done.stderr
