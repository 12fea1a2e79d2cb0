"""The baseline's stage 2: train a PixelCNN on the codes of a frozen autoencoder (`--init-from`), save a pipeline."""

from diffusion_bridge_vq import PixelCNNVQPipeline
from diffusion_bridge_vq.figures import plot_metrics
from diffusion_bridge_vq.training import PixelCNNConfig, parse_config, train


def main() -> None:
    config = parse_config(PixelCNNConfig)
    trained = train(config)
    if trained is not None:
        folder = config.output_dir / "pipeline"
        PixelCNNVQPipeline(trained.vqvae, trained.prior).save_pretrained(folder)
        plot_metrics(config.output_dir)
        print(f"Pipeline: {folder}\nGrids, curves and logs: {config.output_dir}")


if __name__ == "__main__":
    main()
