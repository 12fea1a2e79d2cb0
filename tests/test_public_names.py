"""Every public name of the package has documentation, and the reference has a page for every package."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import diffusion_bridge_vq
from diffusion_bridge_vq import pipelines, training

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


@pytest.mark.parametrize("package", [diffusion_bridge_vq, training])
def test_a_name_that_is_not_there(package):
    """They look their names up when these are asked for."""
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
    assert not hasattr(package, "__nothing__")


def _inherits(cls: type, method) -> bool:
    """Whether a base class documents the method."""
    return any(getattr(getattr(base, method.__name__, None), "__doc__", None) for base in cls.__mro__[1:])


@pytest.mark.parametrize("name", PACKAGES)
def test_the_reference_has_a_page(name):
    assert f"::: diffusion_bridge_vq.{name}" in (ROOT / "docs/reference/api" / f"{name}.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", pipelines.__all__)
def test_arguments_of_pipelines_are_documented(name):
    """Those of a constructor, whichever class it is inherited from, and those of calls."""
    found = getattr(pipelines, name)
    for owner in (found, found.__call__):
        text = (inspect.getdoc(owner) or "").partition("Args:")[2]
        if owner is found or text:
            missing = [
                a for a in inspect.signature(owner).parameters if a != "self" and not re.search(rf"\b{a}\b", text)
            ]
            assert not missing, f"the docstring of {name} lacks {missing}"


def documented_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Name, signature and arguments in the docstring of every function that has some; of a class, its `__init__`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            function: ast.FunctionDef | None = node
        elif isinstance(node, ast.ClassDef):
            function = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        else:
            continue
        if function is not None and "Args:" in (text := ast.get_docstring(node) or ""):  # type: ignore[arg-type]
            yield node.name, function, text.partition("Args:")[2]


def test_optional_arguments_are_documented_with_their_defaults():
    """As in diffusers: `name` (`int`, *optional*, defaults to 3)."""
    wrong = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for owner, function, text in documented_functions(ast.parse(path.read_text(encoding="utf-8"))):
            arguments = function.args
            positional = [*arguments.posonlyargs, *arguments.args]
            defaults = dict(zip(positional[::-1], arguments.defaults[::-1], strict=False))
            defaults |= {
                a: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None
            }
            for argument, default in defaults.items():
                if (found := re.search(rf"(?<![\w`.]){argument.arg} \(([^)]*)", text)) is None:
                    continue
                words = " ".join(found[1].split())
                is_none = isinstance(default, ast.Constant) and default.value is None
                if "*optional*" not in words or not (is_none or "defaults to" in words):
                    wrong.append(f"{path.name}: {owner}({argument.arg}): {words}")
    assert not wrong, "\n".join(wrong)
