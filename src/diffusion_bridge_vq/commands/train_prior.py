"""
Stage 2: train the diffusion prior on the latents of a frozen autoencoder (`--vqvae-from`), or fine-tune a pipeline's
(`--init-from`), and save a pipeline.
"""

from ..cli import train_command
from ..training import PriorConfig


def main() -> None:
    train_command(PriorConfig, __doc__)
