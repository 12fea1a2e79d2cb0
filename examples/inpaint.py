"""Hide part of some images and let a saved pipeline complete them (Figures 6, 7, 8, 17 and 18)."""

from diffusion_bridge_vq.commands.inpaint import main

if __name__ == "__main__":
    main()
