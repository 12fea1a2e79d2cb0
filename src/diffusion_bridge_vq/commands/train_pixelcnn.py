"""The baseline's stage 2: train a PixelCNN on the codes of a frozen autoencoder (`--vqvae-from`), save a pipeline."""

from ..cli import train_command
from ..training import PixelCNNConfig


def main() -> None:
    train_command(PixelCNNConfig, __doc__)
