"""Settings of a measurement."""

import typing
from dataclasses import dataclass, field
from typing import Any

from ..sampling import Solver
from .features import EXTRACTORS


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class EvaluationConfig:
    """
    What figures depend on besides model and images. Fields are options of the command line, help texts their
    documentation.

    Raises:
        ValueError: a value outside its range; says what was given and expected.
    """

    num_images: int = _option(5000, "samples, and real images of each split")
    num_nll_images: int = _option(256, "images whose codes are masked, and of bits per code and ELBO")
    num_nll_samples: int = _option(4, "draws per masked image")
    num_inference_steps: int = _option(50, "reverse steps of the bridges")
    solver: Solver = _option(
        "ancestral", "of the bridges' samples: ancestral (the paper's, as all likelihoods), dpmsolver++ or ddim"
    )
    guidance_scale: float = _option(
        0.0, "of samples that have a class each, in turn, as FIDs of class-conditional models do; 0: without classes"
    )
    extractor: str = _option("inception", f"judge of images: {', '.join(EXTRACTORS)}; only inception makes a FID")
    seed: int = _option(0, "of every draw")

    def __post_init__(self) -> None:
        for name in ("num_images", "num_nll_images", "num_nll_samples", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.guidance_scale < 0:
            raise ValueError(f"`guidance_scale` must be at least 0, got {self.guidance_scale}.")
        for name, choices in (("solver", typing.get_args(Solver)), ("extractor", EXTRACTORS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
