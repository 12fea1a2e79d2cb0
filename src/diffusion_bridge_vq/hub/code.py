"""The package's own source as one file, for repositories that must load without the package."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import ModelMixin

from .. import __version__
from ..pipelines.base import ALTERNATIVES, COMPONENTS
from ..pipelines.bridge import BridgePipeline
from .blocks import block_files
from .carried_code import CODE_PREFIX, PACKAGE_PREFIX, loader_files, save_with_code

_HEADER = """\
# diffusion-bridge-vq {version}, Apache-2.0: what {name} needs of the package, put into one file from its sources,
# so that diffusers' `{call}` works
# without the package. With the package nothing here is ever run.
"""
_PIPELINE_CALL = 'DiffusionPipeline.from_pretrained(..., custom_pipeline="pipeline", trust_remote_code=True)'
_MODEL_CALL = "AutoModel.from_pretrained(..., subfolder=..., trust_remote_code=True)"
_MODEL_MODULE = "modeling"
# One entry for all components: AutoModel reads it in model_index.json, and looks for the module in their folders. A
# folder of a component alone has it in its config.json.
AUTO_MAP = {"auto_map": {"AutoModel": f"{_MODEL_MODULE}.Model"}}
_FREE_NAMES = {"logger"}  # may stand in several modules: the last one serves all


def carried_files(pipeline_class: type, components: Mapping[str, tuple[str, str]], repo_id: str) -> dict[str, str]:
    """
    All code that a pipeline's repository carries: path -> content. diffusers runs it with `trust_remote_code=True`.
    These pipelines draw the same images as the package's.

    Args:
        pipeline_class (`type`): one of this package.
        components (`Mapping`): name -> module and class, as in model_index.json.
        repo_id (`str`): "user/name" of the repository.
    """
    code = one_file(pipeline_class)
    code_name = CODE_PREFIX + hashlib.sha256(code.encode()).hexdigest()[:12]
    models = {name: _model_code(entry) for name, entry in components.items()}
    return (
        {f"{code_name}.py": code}
        | loader_files(pipeline_class.__name__, components, code_name)
        | {f"{name}/{_MODEL_MODULE}.py": source for name, source in models.items() if source is not None}
        | (block_files(components, code_name, repo_id) if issubclass(pipeline_class, BridgePipeline) else {})
    )


def _model_code(entry: tuple[str, str]) -> str | None:
    """The module in a component's folder that AutoModel takes the class `Model` from; None for one without weights."""
    module, name = entry
    ours = {part.__name__: part for part in (*COMPONENTS.values(), *ALTERNATIVES.values())}
    found = ours.get(name)
    if found is None or not issubclass(found, ModelMixin):
        return None
    if not module.startswith(PACKAGE_PREFIX):
        return f"from diffusers import {name} as Model\n"
    return f"{one_file(found)}\nModel = {name}\n"


def one_file(cls: Any) -> str:
    """
    Source of the class of a pipeline or a model and of all that it needs of the package, in one module without
    relative imports.

    Raises:
        ValueError: two of its modules give one name to different things, or rename what they import.
    """
    is_pipeline = not issubclass(cls, ModelMixin)
    sources: dict[str, str] = {}
    for root in (cls, save_with_code) if is_pipeline else (cls,):
        _collect(root.__module__, sources)
    # model_index.json names the package's modules, here and when such a pipeline is saved again
    names = {part.__name__: part.__module__ for part in (*COMPONENTS.values(), *ALTERNATIVES.values())}
    ours = {name: module for name, module in names.items() if module in sources}
    lines = [f'{name}.__module__ = "{module}"' for name, module in ours.items()]
    if is_pipeline:
        lines.append(f"{cls.__name__}.save_pretrained = {save_with_code.__name__}")
    call = _PIPELINE_CALL if is_pipeline else _MODEL_CALL
    header = _HEADER.format(version=__version__, name=cls.__name__, call=call)
    parts = [f"# {'-' * 20} {module}\n\n{source.strip()}\n" for module, source in sources.items()]
    code = "\n\n".join([header, *parts, "\n".join(lines) + "\n"])
    _check_names(code)
    return code


def _collect(module_name: str, sources: dict[str, str]) -> None:
    """Adds a module's source without its relative imports, after those of the modules that they name."""
    if module_name in sources:
        return
    module = importlib.import_module(module_name)
    source = inspect.getsource(module)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        target = importlib.util.resolve_name("." * node.level + (node.module or ""), module.__package__)
        for alias in node.names:
            if alias.asname:
                raise ValueError(f"{module_name} imports {alias.name} as {alias.asname}: one file can't have that.")
            found = getattr(importlib.import_module(target), alias.name)
            origin = str(getattr(found, "__module__", ""))  # packages only pass on what their modules define
            _collect(origin if origin.startswith(PACKAGE_PREFIX) else target, sources)
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    sources[module_name] = "\n".join(lines)


def _check_names(code: str) -> None:
    defined = Counter(_defined_names(ast.parse(code).body))
    twice = sorted(name for name, count in defined.items() if count > 1 and name not in _FREE_NAMES)
    if twice:
        raise ValueError(f"In one file {', '.join(twice)} would stand for two things: rename one of each.")


def _defined_names(body: Iterable[ast.stmt]) -> Iterable[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
