"""The rows of both tables, by name, and the packages that they need."""

from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from diffusion_bridge_vq import __version__

from .code_priors import GPT, MaskedTransformer
from .latent_priors import DDPM, FlowMatching
from .ours import Bridge, BridgeEndToEnd, BridgeStable, BridgeSystem, FittedBridge, PixelCNN, Student
from .row import Row
from .systems import LatentDiffusion, Monai, PixelDDPM

ROWS: dict[str, dict[str, type[Row]]] = {
    "A": {
        "bridge": Bridge,
        "fitted": FittedBridge,
        "student": Student,
        "flow": FlowMatching,
        "ddpm": DDPM,
        "gpt": GPT,
        "masked": MaskedTransformer,
        "pixelcnn": PixelCNN,
    },
    "B": {
        "system": BridgeSystem,
        "e2e": BridgeEndToEnd,
        "stable": BridgeStable,
        "pixel-ddpm": PixelDDPM,
        "ldm": LatentDiffusion,
        "monai": Monai,
    },
}
# The extra `peers` of setup.py: what the package itself doesn't need.
PEERS = ["monai>=1.6", "einops>=0.8"]
_OWN = "diffusion-bridge-vq"


def table_of(name: str) -> str:
    """The table that a row is in."""
    return next(table for table, rows in ROWS.items() if name in rows)


def row_class(name: str) -> type[Row]:
    return ROWS[table_of(name)][name]


def check_packages(names: list[str]) -> None:
    """
    Raises:
        ValueError: a row needs a package that isn't here, or is here in another version than the extra asks for.
    """
    bounds = {requirement.name: requirement for requirement in map(Requirement, PEERS)}
    for name in names:
        for package in row_class(name).packages:
            bound = bounds.get(package)
            try:
                found = version(package)
            except PackageNotFoundError:
                found = None
            if package == _OWN or (found and (bound is None or found in bound.specifier)):
                continue
            here = "isn't installed" if found is None else f"is here as {found}"
            raise ValueError(
                f"The row {name} needs {bound or package}, which {here}: pip install -e '.[peers]' in the repository, "
                "or leave the row out with --rows."
            )


def versions_of(name: str) -> dict[str, str]:
    """{package: version} of what a row comes from."""
    return {package: __version__ if package == _OWN else version(package) for package in row_class(name).packages}
