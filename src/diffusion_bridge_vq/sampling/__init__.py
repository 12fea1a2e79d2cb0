"""The reverse chain: the one place where network and scheduler meet when sampling."""

from .arguments import check_count
from .chain import Callback, inpaint_latents, sample_latents
from .generators import generators_for
from .steppers import SOLVERS, Solver, Spacing, Stepper, default_solver, to_latents

__all__ = [
    "SOLVERS",
    "Callback",
    "Solver",
    "Spacing",
    "Stepper",
    "check_count",
    "default_solver",
    "generators_for",
    "inpaint_latents",
    "sample_latents",
    "to_latents",
]
