"""What the tests of loading and pushing share: names of files, files of folders, a call whose images they compare."""

from pathlib import Path

import torch

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "model_index.json"
PARTS = {f"{part}/{name}" for part in ("unet", "vqvae") for name in ("config.json", WEIGHTS)}
FILES = {INDEX, "scheduler/scheduler_config.json", *PARTS}


def draw(pipe, **kwargs):
    """Two images, in three steps where there are steps."""
    pipe.set_progress_bar_config(disable=True)
    steps = {"num_inference_steps": 3} if hasattr(pipe, "unet") else {}
    return pipe(batch_size=2, generator=torch.Generator().manual_seed(5), output_type="pt", **steps | kwargs).images


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder
