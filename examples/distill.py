"""Train a student that draws in one to four steps, from trajectories of its teacher, and save a pipeline."""

from diffusion_bridge_vq.commands.distill import main

if __name__ == "__main__":
    main()
