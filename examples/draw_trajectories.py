"""Draw the trajectories of a trained bridge once, each process its share, into files that distill.py learns from."""

from diffusion_bridge_vq.commands.draw_trajectories import main

if __name__ == "__main__":
    main()
