"""
Stage 2: train the diffusion prior on the latents of a frozen autoencoder (`--vqvae-from`), or fine-tune a pipeline's
(`--init-from`), and save a pipeline.
"""

from diffusion_bridge_vq.commands.train_prior import main

if __name__ == "__main__":
    main()
