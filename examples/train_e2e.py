"""Train encoder, decoder, codebook and prior in one run (--mode paper: Algorithm 1), and save a pipeline."""

from diffusion_bridge_vq.commands.train_e2e import main

if __name__ == "__main__":
    main()
