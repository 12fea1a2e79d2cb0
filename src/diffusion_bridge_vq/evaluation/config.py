"""Settings of a measurement."""

import typing
from dataclasses import dataclass, field
from typing import Any

from ..sampling import Solver
from .arguments import check_choice, check_count, check_number
from .features import EXTRACTORS


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class EvaluationConfig:
    """
    What figures depend on besides model and images. Each field is an option of the command line; the help texts are
    the documentation.

    Raises:
        TypeError: a value of another type.
        ValueError: a value outside its range; says what was given and expected.
    """

    num_images: int = _option(5000, "samples, and real images of each split")
    num_nll_images: int = _option(256, "images whose codes are masked, and of bits per code and ELBO")
    num_train_images: int = _option(10_000, "training images that class_accuracy and novelty use, or all of fewer")
    num_nll_samples: int = _option(4, "draws per masked image")
    num_inference_steps: int = _option(50, "reverse steps of the bridges")
    solver: Solver = _option(
        "ancestral", "of the bridges' samples: ancestral (the paper's, as all likelihoods), dpmsolver++ or ddim"
    )
    guidance_scale: float = _option(
        0.0,
        "of samples that have a class each, as often as training images have it, or that of the image that each is "
        "drawn from; 0: without classes",
    )
    extractor: str = _option(
        "inception", f"its features compare images: {', '.join(EXTRACTORS)}; only inception makes a FID"
    )
    seed: int = _option(0, "of every draw")

    def __post_init__(self) -> None:
        for name in ("num_images", "num_nll_images", "num_train_images", "num_nll_samples", "num_inference_steps"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, 0)
        check_number("guidance_scale", self.guidance_scale, 0)
        for name, choices in (("solver", typing.get_args(Solver)), ("extractor", EXTRACTORS)):
            check_choice(name, getattr(self, name), choices)
