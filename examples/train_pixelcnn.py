"""The baseline's stage 2: train a PixelCNN on the codes of a frozen autoencoder (`--init-from`), save a pipeline."""

from diffusion_bridge_vq.cli import train_command
from diffusion_bridge_vq.training import PixelCNNConfig

if __name__ == "__main__":
    train_command(PixelCNNConfig, __doc__)
