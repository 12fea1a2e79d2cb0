"""
The paper's comparison in stages: autoencoder; bridge and PixelCNN on its latents, for the same time each; the bridge
end-to-end from the same autoencoder; evaluation and tables. A stage that is done is skipped, one that was interrupted
continues with the same command: repeat `timeout 500 python examples/reproduce.py ...` until it returns 0.
"""

from diffusion_bridge_vq.commands.reproduce import main

if __name__ == "__main__":
    main()
