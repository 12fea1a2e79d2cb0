"""The reverse chain: the one place where network and scheduler meet when sampling."""

from .arguments import check_count
from .chain import Callback, inpaint_latents, sample_latents
from .fit_timesteps import FittedTimesteps, fit_timesteps
from .generators import generators_for, split_generators
from .steppers import SOLVERS, Solver, Spacing, Stepper, default_solver, to_latents

__all__ = [
    "SOLVERS",
    "Callback",
    "FittedTimesteps",
    "Solver",
    "Spacing",
    "Stepper",
    "check_count",
    "default_solver",
    "fit_timesteps",
    "generators_for",
    "inpaint_latents",
    "sample_latents",
    "split_generators",
    "to_latents",
]
