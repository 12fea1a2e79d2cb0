"""
Which schedulers of diffusers sample the bridge's law, found out with exact denoisers of Gaussian data
(tests/sampling/test_stock_schedulers.py), and why the others don't.
"""

import inspect
from typing import Any, NamedTuple

from diffusers.schedulers.scheduling_utils import SchedulerMixin

_ALL = ("epsilon", "sample", "v_prediction")
_SPACINGS = ("leading", "trailing", "linspace")


class StockScheduler(NamedTuple):
    """
    How a class is used.

    Args:
        prediction_types: what the network may predict.
        spacings: where its steps may lie. The first is taken instead of one that isn't there.
        starts_late (`bool`): "leading" steps begin at n (T // (n + 1)), too far from noise for many n; "trailing" is
            taken instead.
        student (`bool`): it is for networks that were distilled, and only for these.
    """

    prediction_types: tuple[str, ...] = _ALL
    spacings: tuple[str, ...] = _SPACINGS
    starts_late: bool = False
    student: bool = False

    def choose_spacing(self, wanted: str) -> str:
        """The wanted spacing, or one with which the class is right."""
        if wanted not in self.spacings:
            return self.spacings[0]
        return "trailing" if self.starts_late and wanted == "leading" else wanted


# Heun's second order overshoots from the last noise levels of a cosine schedule, PNDM assumes even steps, and KDPM2's
# ancestral form finds no levels between few "trailing" steps.
SUPPORTED = {
    "DDIMParallelScheduler": StockScheduler(),
    "DDIMScheduler": StockScheduler(),
    "DDPMParallelScheduler": StockScheduler(),
    "DDPMScheduler": StockScheduler(),
    "DEISMultistepScheduler": StockScheduler(starts_late=True),
    "DPMSolverMultistepScheduler": StockScheduler(starts_late=True),
    "DPMSolverSDEScheduler": StockScheduler(("epsilon", "v_prediction")),
    "DPMSolverSinglestepScheduler": StockScheduler(),
    "EulerAncestralDiscreteScheduler": StockScheduler(("epsilon", "v_prediction")),
    "EulerDiscreteScheduler": StockScheduler(),
    "HeunDiscreteScheduler": StockScheduler(spacings=("leading",)),
    "KDPM2AncestralDiscreteScheduler": StockScheduler(("epsilon", "v_prediction"), ("leading",)),
    "KDPM2DiscreteScheduler": StockScheduler(("epsilon", "v_prediction")),
    "LCMScheduler": StockScheduler(("sample", "v_prediction"), student=True),
    "LMSDiscreteScheduler": StockScheduler(),
    "PNDMScheduler": StockScheduler(("epsilon",), ("leading",)),
    "SASolverScheduler": StockScheduler(starts_late=True),
    "UniPCMultistepScheduler": StockScheduler(starts_late=True),
}

REFUSED = {
    "CogVideoXDDIMScheduler": "changes the noise levels to those of CogVideoX",
    "CogVideoXDPMScheduler": "is called in another way than other schedulers, with the predictions of earlier steps",
    "DDIMInverseScheduler": "goes from images to noise",
    "DPMSolverMultistepInverseScheduler": "goes from images to noise",
    "IPNDMScheduler": "reads `trained_betas` as other numbers and leaves its input almost as it was",
    "RePaintScheduler": "needs an image at every step; the inpainting pipeline completes images with any scheduler",
    "TCDScheduler": "needs a network that was distilled for it: with others the variance of samples is too small",
}
_ADVICE = "Take another one, such as DPMSolverMultistepScheduler, UniPCMultistepScheduler or DDIMScheduler."


# What no option may change: the network was trained for it.
_FIXED = ("prediction_type", "num_train_timesteps", "trained_betas", "beta_start", "beta_end", "beta_schedule")


# Options with which a scheduler samples another law, or fails, at the numbers of steps that people use.
_RIGHT_OPTIONS: dict[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
}
_BETWEEN_LEVELS = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
_ANY_SIGMAS = {"use_karras_sigmas": _BETWEEN_LEVELS, "use_exponential_sigmas": _BETWEEN_LEVELS}
_RIGHT_OPTIONS_OF: dict[str, dict[str, Any]] = {
    "UniPCMultistepScheduler": {"predict_x0": True, "lower_order_final": True, "solver_type": "bh2"},
    "SASolverScheduler": {"lower_order_final": True},
}


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def find_stock_scheduler(
    scheduler_class: type[SchedulerMixin], prediction_type: str, student: bool = False
) -> StockScheduler:
    """
    How a scheduler of diffusers, or a class derived from one, samples the bridge's law.

    Args:
        scheduler_class (`type`): its class.
        prediction_type (`str`): of the network.
        student (`bool`, *optional*, defaults to `False`): whether the network was distilled.

    Raises:
        TypeError: not a scheduler's class.
        ValueError: it doesn't, for networks that predict this; with the reason.
    """
    backends = vars(scheduler_class).get("_backends") if inspect.isclass(scheduler_class) else None
    if backends:  # diffusers' stand-in for a class whose packages aren't installed
        raise ValueError(
            f"{scheduler_class.__name__} needs {' and '.join(backends)}, not all of which are installed: "
            f"`pip install {' '.join(backends)}`."
        )
    if not inspect.isclass(scheduler_class):
        raise TypeError(f"Expected the class of a scheduler, such as DDIMScheduler, got {scheduler_class!r}.")
    name = scheduler_class.__name__
    names = [base.__name__ for base in scheduler_class.__mro__]
    reason = next((REFUSED[each] for each in names if each in REFUSED), None)
    found = next((SUPPORTED[each] for each in names if each in SUPPORTED), None)
    if reason is None and found is None:
        reason = "has noise levels of its own (it takes no `trained_betas`) and can't follow the bridge's"
        if "trained_betas" in inspect.signature(scheduler_class.__init__).parameters:
            reason = "isn't known to sample the law of given noise levels"
    if reason is not None or found is None:
        raise ValueError(f"{name} {reason}. {_ADVICE}")
    if student and not found.student:
        raise ValueError(f"{name} takes many small steps, but this network was distilled for few: take LCMScheduler.")
    if found.student and not student:
        raise ValueError(
            f"{name} needs a network that was distilled for it: with others the variance of samples is too small. "
            f"{_ADVICE}"
        )
    if prediction_type not in found.prediction_types:
        raise ValueError(
            f"{name} samples another law for networks that predict {prediction_type!r}, or fails; it is right for "
            f"{' and '.join(map(repr, found.prediction_types))}. {_ADVICE}"
        )
    return found


def check_options(scheduler_class: type[SchedulerMixin], config: Any, spacings: tuple[str, ...]) -> None:
    """
    Refuse options of a stock scheduler with which it samples another law.

    Raises:
        ValueError: with the option.
    """
    name = scheduler_class.__name__
    for option in ("clip_sample", "thresholding"):
        if config.get(option, False):
            raise ValueError(f"{name} has {option}=True, which cuts latents to [-1, 1]; make it with {option}=False.")
    for option in ("rescale_betas_zero_snr", "use_flow_sigmas"):
        if config.get(option, False):
            raise ValueError(f"{name} has {option}=True, which changes the noise levels; make it with {option}=False.")
    for option, right in _RIGHT_OPTIONS.items():
        if config.get(option, right) != right and name not in _ANY_SIGMAS.get(option, ()):
            raise ValueError(f"{name} samples another law, or fails, with {option}={config[option]!r}: leave it out.")
    for option, right in _RIGHT_OPTIONS_OF.get(name, {}).items():
        if config.get(option, right) != right:
            raise ValueError(f"{name} samples another law, or fails, with {option}={config[option]!r}: leave it out.")
    spacing = config.get("timestep_spacing", spacings[0])
    if spacing not in spacings:
        raise ValueError(
            f"{name} samples another law with timestep_spacing={spacing!r}; make it with "
            f"timestep_spacing={spacings[0]!r}, as `to_diffusers` does."
        )


def make_stock_scheduler(
    scheduler_class: type[SchedulerMixin], settings: dict[str, Any], options: dict[str, Any]
) -> SchedulerMixin:
    """
    A scheduler of diffusers from the settings of a bridge.

    Args:
        scheduler_class (`type`): its class.
        settings (`dict[str, Any]`): of a bridge with s = 1. Those that the class doesn't take stay in the config.
        options (`dict[str, Any]`): arguments of the class, instead of these.

    Raises:
        TypeError, ValueError: see [`find_stock_scheduler`] and [`check_options`].
    """
    student = settings.get("distilled_guidance_scale") is not None
    stock = find_stock_scheduler(scheduler_class, settings["prediction_type"], student)
    if student:
        options = {"original_inference_steps": settings["num_train_timesteps"]} | options  # any level may be a step
    for name in _FIXED:
        if name in options and options[name] != settings.get(name):
            raise ValueError(
                f"`{name}` of the scheduler follows from the bridge and the network that was trained with it: it is "
                f"{_shorten(settings.get(name))}, got {_shorten(options[name])}. Leave it out."
            )
    accepted = inspect.signature(scheduler_class.__init__).parameters
    settings = settings | {"timestep_spacing": stock.choose_spacing(settings["timestep_spacing"])}
    scheduler = scheduler_class(**{k: v for k, v in (settings | options).items() if k in accepted or k in options})
    check_options(scheduler_class, scheduler.config, stock.spacings)
    kept = {k: v for k, v in settings.items() if k not in accepted}
    scheduler.register_to_config(**kept, _use_default_values=[])
    return scheduler
