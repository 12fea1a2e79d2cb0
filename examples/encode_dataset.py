"""
Encode a data set once with a trained autoencoder, each process its share, into parquet files that train_prior.py and
train_pixelcnn.py read (`--latents`).

accelerate launch examples/encode_dataset.py --vqvae-from outputs/vq --dataset path/to/shards --streaming \
    --output-dir outputs/latents

After an interruption the same command goes on, with any number of processes.
"""

from diffusion_bridge_vq.commands.encode_dataset import main

if __name__ == "__main__":
    main()
