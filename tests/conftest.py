"""
All tests of a process talk to one Hub on this machine and to no other, logged out and with a cache of their own. It is
up before the first Hugging Face import, which reads its address.
"""

import gc
import os
import runpy
import sys
import tempfile
from pathlib import Path

import pytest
from hub_server import HubServer

_EXAMPLES = Path(__file__).parents[1] / "examples"
HUB = HubServer()
HOME = tempfile.TemporaryDirectory(prefix="hub-")  # removed with the process
for name in [name for name in os.environ if name.startswith("HF_")]:
    del os.environ[name]
os.environ |= HUB.environment(Path(HOME.name))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector needn't look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker ends with a long one alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def what_earlier_files_imported_stays():
    """Every run ends with a collection, which needn't look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hub_server() -> HubServer:
    return HUB


@pytest.fixture
def own_modules(monkeypatch, tmp_path):
    """A folder of its own for code of repositories; the package that holds it is the former one afterwards."""
    from diffusers.utils import dynamic_modules_utils

    former = str(dynamic_modules_utils.HF_MODULES_CACHE)
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path))
    # diffusers appends the folder and leaves it there: a former one would be found first
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != former])
    before = {name: sys.modules.pop(name) for name in loaded_code()}
    yield
    for name in loaded_code():
        del sys.modules[name]
    sys.modules.update(before)


def loaded_code() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "diffusers_modules"]


@pytest.fixture
def example(monkeypatch):
    """Runs a script in this process."""

    def run(script: str, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.syspath_prepend((_EXAMPLES / script).parent)  # as Python does
        runpy.run_path(str(_EXAMPLES / script), run_name="__main__")

    return run


@pytest.fixture
def fails(example, capsys):
    """Runs a script that must end with status 2; the last line that it wrote."""

    def run(script: str, *arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            example(script, *arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err.rstrip().split("\n")[-1]

    return run


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Loading a model fails the test: outputs are checked before."""
    for name in ("diffusion_bridge_vq.pipelines.base", "diffusion_bridge_vq.pipelines.components"):
        monkeypatch.setattr(f"{name}.find_pipeline_folder", lambda place: pytest.fail("it was loaded"))
