"""examples/app.py as a command; tests/page has the page itself."""

from pathlib import Path

import pytest
from warm_processes import Script

APP = Path(__file__).parents[1] / "examples" / "app.py"


def test_without_the_checkpoint(tmp_path):
    done = Script(APP, cwd=tmp_path).end()
    assert done.returncode == 2 and "run this from the repository" in done.stderr


def test_a_folder_without_a_model(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio: the extra `demo`")
    done = Script(APP, tmp_path, cwd=tmp_path).end()
    assert done.returncode == 2 and done.stderr.startswith("app.py: error: ") and "Traceback" not in done.stderr


def test_without_gradio(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError")
    done = Script(APP, cwd=APP.parents[1], variables={"PYTHONPATH": str(tmp_path)}).end()
    assert done.returncode == 2 and "install the extra" in done.stderr and "Traceback" not in done.stderr
