"""Train encoder, decoder, codebook and prior end-to-end (Algorithm 1), and save a pipeline."""

from ..cli import train_command
from ..training import E2EConfig


def main() -> None:
    train_command(E2EConfig, __doc__)
