"""The baseline's stage 2: train a PixelCNN on the codes of a frozen autoencoder (`--vqvae-from`), save a pipeline."""

from diffusion_bridge_vq.commands.train_pixelcnn import main

if __name__ == "__main__":
    main()
