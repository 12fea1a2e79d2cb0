"""Upload a run (weights, card, grids, settings, evaluation) to the Hub, in one commit. Needs `hf auth login`."""

from diffusion_bridge_vq.commands.push_to_hub import main

if __name__ == "__main__":
    main()
