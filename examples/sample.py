"""Draw images from a saved pipeline: as one grid, or with --output-dir as image files, each process its share."""

from diffusion_bridge_vq.commands.sample import main

if __name__ == "__main__":
    main()
