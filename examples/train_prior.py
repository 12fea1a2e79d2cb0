"""Stage 2: train the diffusion prior on the latents of a frozen autoencoder (`--init-from`), and save a pipeline."""

from diffusion_bridge_vq.cli import train_command
from diffusion_bridge_vq.training import PriorConfig

if __name__ == "__main__":
    train_command(PriorConfig, __doc__)
