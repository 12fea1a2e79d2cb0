"""The one file that replaces the package; client_without_package.py runs it without the package."""

import ast
import sys

import pytest

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, DiffusionBridgeVQPipeline, PixelCNNVQPipeline
from diffusion_bridge_vq.hub import code


@pytest.mark.parametrize(
    "cls", [DiffusionBridgeVQPipeline, DiffusionBridgeVQInpaintPipeline, PixelCNNVQPipeline], ids=lambda c: c.__name__
)
def test_one_file(cls):
    """It needs nothing of the package and of nobody else than the package does."""
    source = code.one_file(cls)
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any(getattr(node, "level", 0) for node in imports)
    modules = {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in imports if isinstance(n, ast.ImportFrom)}
    others = {name.split(".")[0] for name in modules} - sys.stdlib_module_names
    assert others <= {"PIL", "diffusers", "huggingface_hub", "numpy", "safetensors", "torch"}
    assert f"class {cls.__name__}(" in source and "class OUBridgeScheduler(" in source
    # what model_index.json calls a network that may stand in the U-Net's place
    assert 'CodeUNet2DModel.__module__ = "diffusion_bridge_vq.models.code_unet"' in source


def test_names_that_would_stand_for_two_things():
    with pytest.raises(ValueError, match="In one file f, x would stand for two things"):
        code._check_names("x = 1\ndef f(): ...\ny: int = 2\nclass f: ...\nx: int = 3\n")
    code._check_names("logger = 1\nlogger = 2\n")
