"""Pictures on the command line, for models that draw from images."""

from pathlib import Path
from typing import Any

import torch

from ..data.condition_files import read_condition
from ..data.decoding import reason


def read_conditions(pipe: Any, paths: list[Path] | None) -> list[torch.Tensor]:
    """What the model draws from, (C, s, s) in [0, 1], of pictures of any size, scaled and cropped as for training."""
    wanted = pipe.image_condition
    if wanted is None:
        if paths:
            raise ValueError("This model doesn't draw from images: leave out --condition.")
        return []
    if not paths:
        raise ValueError(f"This model draws from images ({wanted.name}): give them by --condition PICTURE ...")
    config, found = pipe.vqvae.config, []
    for path in paths:
        try:
            record = {"bytes": None, "path": str(path)}
            found.append(read_condition(wanted, record, config.in_channels, config.sample_size))
        except Exception as error:  # Pillow raises many for damaged files
            raise ValueError(f"--condition: {path} can't be read ({reason(error)}).") from error
    return found
