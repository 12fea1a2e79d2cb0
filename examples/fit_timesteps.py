"""Place few sampling steps where they lose least for one trained bridge, and save them in its scheduler's config."""

from diffusion_bridge_vq.commands.fit_timesteps import main

if __name__ == "__main__":
    main()
