"""The bounds that setup.py claims are those that `make test-lowest` tries."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOWEST = ROOT / "constraints-lowest.txt"
UNTRIED = {
    "gradio",
    "markdown-it-py",
    "deepspeed",
    "monai",
    "einops",
    "mkdocs-material",
    "mkdocstrings-python",
}  # other environments
TOOLS = {"ruff", "mypy", "codespell", "build"}  # the newest are as good


def requirements() -> list[Requirement]:
    """Every string of setup.py that is a requirement with a bound."""
    return [Requirement(text) for text in re.findall(r'"([a-z0-9-]+>=[^"]+)"', (ROOT / "setup.py").read_text())]


def pins() -> dict[str, Version]:
    lines = [line for line in LOWEST.read_text().splitlines() if line and not line.startswith("#")]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_every_requirement_has_a_lower_bound():
    listed = (ROOT / "setup.py").read_text().split("install_requires=[")[1].split("]")[0]
    for text in re.findall(r'"([^"]+)"', listed):
        assert any(bound.operator == ">=" for bound in Requirement(text).specifier), text


def tried() -> list[Requirement]:
    """Those that `make test-lowest` installs in their lowest version."""
    others = UNTRIED | TOOLS | {"setuptools"}
    return [requirement for requirement in requirements() if requirement.name not in others]


@pytest.mark.parametrize("requirement", tried(), ids=lambda requirement: requirement.name)
def test_the_bound_is_the_version_that_is_tried(requirement):
    """setup.py claimed huggingface-hub 1.0 with diffusers 0.40, which needs 1.23."""
    (lowest,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    assert pins()[requirement.name] == Version(lowest)


def test_nothing_else_is_pinned():
    assert set(pins()) <= {requirement.name for requirement in requirements()}
