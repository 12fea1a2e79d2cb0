"""The blocks of a modular pipeline, as a repository carries them for `ModularPipelineBlocks.from_pretrained`."""

import ast
import inspect
import json
from collections.abc import Mapping

from diffusers import __version__ as diffusers_version

from ..pipelines import modular_blocks
from .carried_code import CODE_MODULE, PACKAGE_PREFIX

#: What `block_files` names: the last two are read by diffusers.
BLOCK_FILES = ("block.py", "modular_config.json", "modular_model_index.json")
_CLASS = modular_blocks.DiffusionBridgeVQBlocks.__name__
_HEADER = """\
# The blocks of diffusion-bridge-vq, from its sources: run by diffusers'
# `ModularPipelineBlocks.from_pretrained(..., trust_remote_code=True)`.
"""


def block_files(components: Mapping[str, tuple[str, str]], code_name: str, repo_id: str) -> dict[str, str]:
    """
    What diffusers reads of a repository with blocks: path -> content.

    `modular_config.json` names the class in `block.py`. `modular_model_index.json` says where components come from;
    diffusers takes their classes from modules that are loaded already, which `block.py` sees to.

    Args:
        components (`Mapping`): name -> module and class, as in model_index.json.
        code_name (`str`): of the module next to `block.py` with the pipeline's code, without ".py".
        repo_id (`str`): "user/name" of the repository. A local copy of it reads its own files.
    """
    own = {"_diffusers_version": diffusers_version}
    config = {"_class_name": _CLASS, **own, "auto_map": {"ModularPipelineBlocks": f"block.{_CLASS}"}}
    index = {"_class_name": "ModularPipeline", "_blocks_class_name": _CLASS, **own}
    for name, (module, class_name) in components.items():
        library = CODE_MODULE if module.startswith(PACKAGE_PREFIX) else module
        place = {"pretrained_model_name_or_path": repo_id, "subfolder": name, "variant": None, "revision": None}
        index[name] = [library, class_name, {**place, "type_hint": [library, class_name]}]
    texts = (_block_code(code_name), *(json.dumps(content, indent=2) + "\n" for content in (config, index)))
    return dict(zip(BLOCK_FILES, texts, strict=True))


def _block_code(code_name: str) -> str:
    """The source of the blocks, with what it imports of the package taken from `code_name`."""
    source = inspect.getsource(modular_blocks)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            imported = ", ".join(alias.name for alias in node.names)
            rest = (node.end_lineno or node.lineno) - node.lineno
            lines[node.lineno - 1 : node.end_lineno] = [f"from .{code_name} import {imported}", *[""] * rest]
    known = f'import sys\n\nsys.modules["{CODE_MODULE}"] = sys.modules[sample_latents.__module__]\n'
    return "\n".join([_HEADER, *lines, "", "", known])
