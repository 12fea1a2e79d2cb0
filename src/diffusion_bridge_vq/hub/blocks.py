"""The blocks of a modular pipeline, as a repository carries them for `ModularPipelineBlocks.from_pretrained`."""

import ast
import hashlib
import inspect
import json
from collections.abc import Mapping

from diffusers import __version__ as diffusers_version

from ..pipelines import modular_blocks
from .carried_code import CODE_PREFIX, PACKAGE_PREFIX, shared_module

#: What diffusers reads of the files that `block_files` makes.
BLOCK_FILES = ("block.py", "modular_config.json", "modular_model_index.json")
_CLASS = modular_blocks.DiffusionBridgeVQBlocks.__name__
_HEADER = """\
# The blocks of diffusion-bridge-vq, from its sources: run by diffusers'
# `ModularPipelineBlocks.from_pretrained(..., trust_remote_code=True)`.
"""
_LOADER = f"""\
from .{{code_name}} import sample_latents  # diffusers copies what this file names
from .{{name}} import {_CLASS}
"""


def block_files(components: Mapping[str, tuple[str, str]], code_name: str, repo_id: str) -> dict[str, str]:
    """
    What diffusers reads of a repository with blocks: path -> content.

    `modular_config.json` names the class in `block.py`, which has it from a module with a hash in its name: diffusers
    runs `block.py` of several folders in one namespace. `modular_model_index.json` says where components come from;
    diffusers takes their classes from modules that are loaded already, which importing `block.py` loads.

    Args:
        components (`Mapping`): name -> module and class, as in model_index.json.
        code_name (`str`): of the module next to `block.py` with the pipeline's code, without ".py".
        repo_id (`str`): "user/name" of the repository. A local copy of it reads its own files.
    """
    own = {"_diffusers_version": diffusers_version}
    config = {"_class_name": _CLASS, **own, "auto_map": {"ModularPipelineBlocks": f"block.{_CLASS}"}}
    index = {"_class_name": "ModularPipeline", "_blocks_class_name": _CLASS, **own}
    for name, (module, class_name) in components.items():
        library = shared_module(code_name) if module.startswith(PACKAGE_PREFIX) else module
        place = {"pretrained_model_name_or_path": repo_id, "subfolder": name, "variant": None, "revision": None}
        index[name] = [library, class_name, {**place, "type_hint": [library, class_name]}]
    source = _block_code(code_name)
    name = f"{CODE_PREFIX}blocks_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    loader = _LOADER.format(code_name=code_name, name=name)
    texts = (loader, *(json.dumps(content, indent=2) + "\n" for content in (config, index)))
    return {f"{name}.py": source, **dict(zip(BLOCK_FILES, texts, strict=True))}


def _block_code(code_name: str) -> str:
    """The source of the blocks, with what it imports of the package taken from `code_name`."""
    source = inspect.getsource(modular_blocks)
    lines = source.splitlines()
    found = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.level]
    for node in found:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    names = [alias.name for node in found for alias in node.names]
    shared = f'sys.modules.setdefault("{shared_module(code_name)}", sys.modules[sample_latents.__module__])'
    taken = [f"{name} = code.{name}" for name in names]
    lines[found[-1].lineno - 1] = "\n".join(
        ["import sys", "", f"from .{code_name} import sample_latents", "", f"code = {shared}", *taken]
    )
    return "\n".join([_HEADER, *lines, ""])
