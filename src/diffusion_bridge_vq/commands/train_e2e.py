"""Train autoencoder and prior in one run, and save a pipeline. `--mode paper` is Algorithm 1 of the paper."""

from ..cli import train_command
from ..training import E2EConfig


def main() -> None:
    train_command(E2EConfig, __doc__)
