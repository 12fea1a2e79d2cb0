"""Imports point down only; CONTRIBUTING.md has the table of levels."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = "diffusion_bridge_vq"
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / PACKAGE
LEVELS = {
    "schedulers": 0,
    "models": 0,
    "data": 0,
    "grids": 0,
    "pretrained": 1,
    "run_folder": 0,
    "choices": 0,
    "clock": 0,
    "home_folder": 0,
    "sampling": 1,
    "losses": 1,
    "privacy": 1,
    "training": 2,
    "pipelines": 2,
    "evaluation": 3,
    "figures": 3,
    "model_card": 3,
    "hub": 3,
    "onnx_export": 3,
    "sample_folder": 3,
    "__main__": 6,
    "commands": 5,
    "cli": 4,
    "page": 4,
    "comparison": 4,
    "toy": 4,
}
SHARED_LEVEL = 3  # the only level whose modules may import each other


def imported_names(path: Path, root: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Line and dotted path below the package of each import of the package, wherever it is in the file."""
    package = (PACKAGE, *path.relative_to(root).parent.parts)  # what a single leading dot means here
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else ()
            origin += tuple(node.module.split(".")) if node.module else ()
            targets = [(*origin, alias.name) for alias in node.names]
        else:
            continue
        found += [(node.lineno, target[1:]) for target in targets if target[0] == PACKAGE]
    return found


def violations(root: Path) -> list[str]:
    """One line for each import that does not point down, and for each module that has no level."""
    problems = []
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place == Path("__init__.py"):
            continue
        importer = place.with_suffix("").parts[0]
        if importer not in LEVELS:
            problems.append(f"{place}: '{importer}' has no level: give it one in LEVELS and in CONTRIBUTING.md")
            continue
        for line, name in imported_names(path, root):
            imported = name[0] if name else ""
            if imported in (importer, "__version__"):
                continue
            if imported not in LEVELS:
                problems.append(f"{place}:{line}: imports '{imported}' through the root: name the module it is in")
                continue
            down = LEVELS[imported] < LEVELS[importer]
            if not down and not LEVELS[imported] == LEVELS[importer] == SHARED_LEVEL:
                problems.append(
                    f"{place}:{line}: {importer} (level {LEVELS[importer]}) imports "
                    f"{imported} (level {LEVELS[imported]})"
                )
    return problems


def test_contributing_has_the_same_levels():
    """There the scripts have one, too."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [(name, int(level)) for level, names in rows for name in re.findall(r"`(.+?)`", names)]
    assert sorted(named) == sorted([*LEVELS.items(), ("examples/", 6), ("benchmarks/", 6)])


def test_imports_point_down():
    assert (SOURCE / "__init__.py").is_file()
    assert violations(SOURCE) == []


UPWARD = "losses.py:{}: losses (level 1) imports training (level 2)"
CROSS = "models/net.py:{}: models (level 0) imports schedulers (level 0)"


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        # Upward, absolute and relative.
        ("losses.py", "import diffusion_bridge_vq.training.loop as loop", UPWARD.format(1)),
        ("losses.py", "from diffusion_bridge_vq.training import loop", UPWARD.format(1)),
        ("losses.py", "from diffusion_bridge_vq import training", UPWARD.format(1)),
        ("losses.py", "from .training.loop import Trainer", UPWARD.format(1)),
        ("losses.py", "from . import training", UPWARD.format(1)),
        # Between the packages of level 0, absolute and relative, at both depths that a module can have.
        ("models/net.py", "from diffusion_bridge_vq.schedulers import OUBridgeScheduler", CROSS.format(1)),
        ("models/net.py", "from ..schedulers import OUBridgeScheduler", CROSS.format(1)),
        ("models/net.py", "from .. import schedulers", CROSS.format(1)),
        ("models/__init__.py", "from ..schedulers import x", CROSS.format(1).replace("net", "__init__")),
        ("models/a/b.py", "from ...schedulers import x", CROSS.format(1).replace("net", "a/b")),
        # Between neighbors of levels 1 and 2.
        ("sampling.py", "from . import losses", "sampling.py:1: sampling (level 1) imports losses (level 1)"),
        (
            "training/loop.py",
            "from ..pipelines import x",
            "training/loop.py:1: training (level 2) imports pipelines (level 2)",
        ),
        # Inside a function, and for type checkers only.
        ("losses.py", "def f():\n    from .training import loop", UPWARD.format(2)),
        (
            "models/net.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..schedulers import x",
            CROSS.format(3),
        ),
        # Round about, through the root.
        ("losses.py", "from . import Trainer", "losses.py:1: imports 'Trainer' through the root"),
        ("losses.py", "import diffusion_bridge_vq", "losses.py:1: imports '' through the root"),
        # A module that the table does not know.
        ("misc.py", "", "misc.py: 'misc' has no level: give it one"),
    ],
)
def test_checker_catches(tmp_path, module, source, expected):
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    (problem,) = violations(tmp_path)
    assert problem.startswith(expected)


def test_checker_accepts_what_points_down(tmp_path):
    sources = {
        "__init__.py": "from .hub import push",
        "models/__init__.py": "from .net import Net",
        "models/net.py": "from diffusers import schedulers\nfrom . import quantizer\nfrom .. import models",
        "losses.py": "from .models import Net\nfrom diffusion_bridge_vq import schedulers",
        "training/loop.py": "from ..losses import rec\nfrom ..data.images import x\nfrom .config import y",
        "hub.py": "from . import __version__, model_card\nfrom .pipelines import z",
    }
    for module, source in sources.items():
        path = tmp_path / module
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    assert violations(tmp_path) == []


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them, and their helpers, by base name: two of one name end the whole suite at collection."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, times in names.items() if times > 1] == []
