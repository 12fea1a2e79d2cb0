"""The folder that becomes a Space, made by the command of examples/space/README.md."""

import ast
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# gradio is the Space's own; tests/page has the page with it
START = """
import sys
from unittest.mock import MagicMock

sys.modules["gradio"] = MagicMock()
import app
import diffusion_bridge_vq

from pathlib import Path
from diffusion_bridge_vq.data import load_images

assert len(load_images("digits", resolution=16, channels=1, split="test")) == 297
assert (Path(diffusion_bridge_vq.__file__).parent / "page" / "static" / "index.html").is_file() and callable(app.main)
print(diffusion_bridge_vq.__file__)
"""


def test_requirements_are_the_packages():
    tree = list(ast.walk(ast.parse((ROOT / "setup.py").read_text())))
    (asked,) = [n.value for n in tree if isinstance(n, ast.keyword) and n.arg == "install_requires"]
    (demo,) = [n.value for n in tree if isinstance(n, ast.Assign) and n.targets[0].id == "DEMO"]
    gradio, *others = ast.literal_eval(demo)
    assert gradio.startswith("gradio>=")  # which `sdk_version` brings
    lines = (ROOT / "examples" / "space" / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [*ast.literal_eval(asked), *others]


def make_space(folder: Path) -> dict[str, str]:
    """The command of examples/space/README.md -> an environment without the clone's package."""
    text = (ROOT / "examples" / "space" / "README.md").read_text()
    make, upload = re.search(r"```bash\n(.*)\n(.*)\n```", text).groups()
    assert " outputs/space " in upload
    subprocess.run(make.replace("outputs/space", str(folder)), shell=True, check=True, cwd=ROOT)
    assert {"README.md", "requirements.txt", "app.py", "diffusion_bridge_vq"} == set(os.listdir(folder))
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_folder_is_enough(tmp_path):
    """Without an installed package, app.py finds the one in its folder, with its data."""
    env = make_space(folder := tmp_path / "space")
    command = [sys.executable, "-c", START]  # -c puts the folder first in the path
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(folder / "diffusion_bridge_vq" / "__init__.py")


@pytest.mark.slow
def test_the_space_serves_the_page(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio: the extra `demo`")
    env = make_space(folder := tmp_path / "space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env |= {"MODEL_ID": str(ROOT / "checkpoints" / "digits"), "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):  # torch and gradio, on a busy machine
            assert server.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
        assert '"name": "digits"' in page and "data:image/png;base64," in page
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/page/main.js").status == 200
    finally:
        server.terminate()
        server.wait(60)
