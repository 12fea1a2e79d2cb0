"""Every public name of the package has documentation, and the reference has a page for every package."""

import importlib
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(
    path.parent.name
    for path in (ROOT / "src" / "diffusion_bridge_vq").glob("*/__init__.py")
    if "__all__" in path.read_text(encoding="utf-8") and path.parent.name not in ("cli", "page")  # for our commands
)


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_documented(name):
    package = importlib.import_module(f"diffusion_bridge_vq.{name}")
    assert package.__doc__
    for public in package.__all__:
        found = getattr(package, public)
        if isinstance(found, type | FunctionType):  # not aliases of types
            assert found.__doc__, f"{name}.{public} has no docstring"
        if isinstance(found, type):
            functions = [(key, value) for key, value in vars(found).items() if isinstance(value, FunctionType)]
            own = [value for key, value in functions if key == value.__name__ and not key.startswith("_")]
            missing = [method.__name__ for method in own if not method.__doc__ and not _inherits(found, method)]
            assert not missing, f"{name}.{public} has methods without a docstring: {missing}"


def _inherits(cls: type, method) -> bool:
    """Whether a base class documents the method."""
    return any(getattr(getattr(base, method.__name__, None), "__doc__", None) for base in cls.__mro__[1:])


@pytest.mark.parametrize("name", PACKAGES)
def test_the_reference_has_a_page(name):
    assert f"::: diffusion_bridge_vq.{name}" in (ROOT / "docs/reference/api" / f"{name}.md").read_text(
        encoding="utf-8"
    )
