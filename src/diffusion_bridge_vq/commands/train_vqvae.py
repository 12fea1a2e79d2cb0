"""Stage 1: train encoder, decoder and codebook. `train_prior.py --vqvae-from OUTPUT_DIR` goes on from there."""

from ..cli import train_command
from ..training import VQConfig


def main() -> None:
    train_command(VQConfig, __doc__, makes_pipeline=False)
