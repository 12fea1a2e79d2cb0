"""Stage 1: train encoder, decoder and codebook. `train_prior.py --init-from OUTPUT_DIR` goes on from there."""

from diffusion_bridge_vq.figures import plot_metrics
from diffusion_bridge_vq.training import VQConfig, parse_config, train
from diffusion_bridge_vq.training.command import errors_as_lines


@errors_as_lines()
def main() -> None:
    config = parse_config(VQConfig)
    trained = train(config)
    if trained is not None:
        trained.vqvae.save_pretrained(config.output_dir / "vqvae")
        plot_metrics(config.output_dir)
        print(f"Autoencoder: {config.output_dir / 'vqvae'}\nGrids, curves and logs: {config.output_dir}")


if __name__ == "__main__":
    main()
