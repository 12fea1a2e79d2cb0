"""Training: settings, objectives, and the trainer on Accelerate. Names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..losses import ReconstructionLoss
    from .agreement import launched_processes
    from .config import RunConfig
    from .encoding import encode_images
    from .kinds import DistillConfig, E2EConfig, PixelCNNConfig, PriorConfig, VQConfig
    from .objectives import (
        DistillObjective,
        E2EObjective,
        EarlyStoppingRule,
        Objective,
        ObjectiveOutput,
        PixelCNNObjective,
        PriorObjective,
        VQObjective,
        build_objective,
        trains,
    )
    from .options import option
    from .presets import PRESETS
    from .run import train
    from .starting_point import load_autoencoder
    from .trainer import Trainer
    from .trajectories import draw_trajectories

# Settings alone must be there at once, for `--help`: the others import torch and Accelerate.
_MODULES = {
    "..losses": ("ReconstructionLoss",),
    ".agreement": ("launched_processes",),
    ".config": ("RunConfig",),
    ".encoding": ("encode_images",),
    ".kinds": ("DistillConfig", "E2EConfig", "PixelCNNConfig", "PriorConfig", "VQConfig"),
    ".objectives": (
        "DistillObjective",
        "E2EObjective",
        "EarlyStoppingRule",
        "Objective",
        "ObjectiveOutput",
        "PixelCNNObjective",
        "PriorObjective",
        "VQObjective",
        "build_objective",
        "trains",
    ),
    ".options": ("option",),
    ".presets": ("PRESETS",),
    ".run": ("train",),
    ".starting_point": ("load_autoencoder",),
    ".trainer": ("Trainer",),
    ".trajectories": ("draw_trajectories",),
}

__all__ = [
    "PRESETS",
    "DistillConfig",
    "DistillObjective",
    "E2EConfig",
    "E2EObjective",
    "EarlyStoppingRule",
    "Objective",
    "ObjectiveOutput",
    "PixelCNNConfig",
    "PixelCNNObjective",
    "PriorConfig",
    "PriorObjective",
    "ReconstructionLoss",
    "RunConfig",
    "Trainer",
    "VQConfig",
    "VQObjective",
    "build_objective",
    "draw_trajectories",
    "encode_images",
    "launched_processes",
    "load_autoencoder",
    "option",
    "train",
    "trains",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
