"""Train encoder, decoder, codebook and prior end-to-end (Algorithm 1), and save a pipeline."""

from diffusion_bridge_vq.cli import train_command
from diffusion_bridge_vq.training import E2EConfig

if __name__ == "__main__":
    train_command(E2EConfig, __doc__)
