"""Write the pipeline of a checkpoint, to look at a run before it ends: sample.py and the others take the result."""

from diffusion_bridge_vq.commands.export_checkpoint import main

if __name__ == "__main__":
    main()
