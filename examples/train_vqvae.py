"""Stage 1: train encoder, decoder and codebook. `train_prior.py --vqvae-from OUTPUT_DIR` goes on from there."""

from diffusion_bridge_vq.commands.train_vqvae import main

if __name__ == "__main__":
    main()
