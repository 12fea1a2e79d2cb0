"""Draw images from a saved pipeline and write them as one grid."""

from diffusion_bridge_vq.commands.sample import main

if __name__ == "__main__":
    main()
