"""Code that a repository carries, for people without this package. This file is part of what is carried."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pipelines.base import VQPipeline

CODE_PREFIX = "diffusion_bridge_vq_"
PACKAGE_PREFIX = "diffusion_bridge_vq."


def shared_module(code_name: str) -> str:
    """
    What all files of all repositories find the code of this name in, whatever diffusers calls the module. The name has
    a hash of the code: the same code is one set of classes in a process, and other code is another.
    """
    return f"diffusers_modules.{code_name}"


def loader_files(pipeline_class: str, components: Mapping[str, tuple[str, str]], code_name: str) -> dict[str, str]:
    """
    The small files through which diffusers finds the code: path in the repository -> content.

    diffusers takes the pipeline's class from pipeline.py and a component's from COMPONENT/MODULE.py, MODULE being what
    model_index.json says; it runs these again at each load, but `code_name` once, so that a pipeline that was loaded
    before keeps its classes.

    Args:
        pipeline_class (`str`): name of the class in `code_name`.
        components (`Mapping`): name -> module and class, as in model_index.json; diffusers' own need no file.
        code_name (`str`): of the module next to pipeline.py, without ".py".
    """
    files = {
        # one name for all classes: diffusers runs pipeline.py of several repositories in one namespace
        "pipeline.py": f"import sys\n\nfrom .{code_name} import {pipeline_class} as Pipeline\n\n"
        f'code = sys.modules.setdefault("{shared_module(code_name)}", sys.modules[Pipeline.__module__])\n'
        f"Pipeline = code.{pipeline_class}\n"
    }
    for name, (module, class_name) in components.items():
        if module.startswith(PACKAGE_PREFIX):
            files[f"{name}/{module}.py"] = f"from {shared_module(code_name)} import {class_name}  # see pipeline.py\n"
    return files


def save_with_code(self: VQPipeline, save_directory: Any, *args: Any, **kwargs: Any) -> None:
    """`save_pretrained` of the carried pipelines: the code is written, too, so that the folder loads as this did."""
    VQPipeline.save_pretrained(self, save_directory, *args, **kwargs)
    parts = {name: type(part) for name, part in self.components.items()}
    files = {Path(__file__).name: Path(__file__).read_text(encoding="utf-8")}
    files |= loader_files(
        type(self).__name__,
        {name: (part.__module__, part.__name__) for name, part in parts.items()},
        Path(__file__).stem,
    )
    for path, content in files.items():
        target = Path(save_directory) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
