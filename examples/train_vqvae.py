"""Stage 1: train encoder, decoder and codebook. `train_prior.py --init-from OUTPUT_DIR` goes on from there."""

from diffusion_bridge_vq.cli import train_command
from diffusion_bridge_vq.training import VQConfig

if __name__ == "__main__":
    train_command(VQConfig, __doc__, makes_pipeline=False)
