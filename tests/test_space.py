"""The folder that becomes a Space, made by the command of examples/space/README.md."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# gradio is the Space's own; test_app.py has the page with it
START = """
import sys
from unittest.mock import MagicMock

sys.modules["gradio"] = MagicMock()
import app
import diffusion_bridge_vq

assert len(app.load_images("digits", resolution=16, channels=1, split="test")) == 297
print(diffusion_bridge_vq.__file__)
"""


def test_requirements_are_the_packages():
    (asked,) = [
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg == "install_requires"
    ]
    lines = (ROOT / "examples" / "space" / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == asked


def test_the_folder_is_enough(tmp_path):
    """Without an installed package, app.py finds the one beside it, with its data."""
    text = (ROOT / "examples" / "space" / "README.md").read_text()
    make, upload = re.search(r"```bash\n(.*)\n(.*)\n```", text).groups()
    folder = tmp_path / "space"
    assert " outputs/space " in upload
    subprocess.run(make.replace("outputs/space", str(folder)), shell=True, check=True, cwd=ROOT)
    assert {"README.md", "requirements.txt", "app.py", "diffusion_bridge_vq"} == set(os.listdir(folder))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", START]  # -c puts the folder first in the path
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(folder / "diffusion_bridge_vq" / "__init__.py")
