"""The baseline's stage 2: train a PixelCNN on the codes of a frozen autoencoder (`--init-from`), save a pipeline."""

from diffusion_bridge_vq import PixelCNNVQPipeline
from diffusion_bridge_vq.evaluation import evaluation_of
from diffusion_bridge_vq.figures import plot_metrics
from diffusion_bridge_vq.hub import parse_push_options, upload_while_training
from diffusion_bridge_vq.training import PixelCNNConfig, parse_config, train
from diffusion_bridge_vq.training.command import errors_as_lines


@errors_as_lines()
def main() -> None:
    push, arguments = parse_push_options()
    config = parse_config(PixelCNNConfig, arguments)
    with upload_while_training(config.output_dir, None if config.dry_run else push):
        trained = train(config, evaluation_of(config))
        if trained is not None:
            folder = config.output_dir / "pipeline"
            PixelCNNVQPipeline(trained.vqvae, trained.prior).save_pretrained(folder)
            plot_metrics(config.output_dir)
            print(f"Pipeline: {folder}\nGrids, curves and logs: {config.output_dir}")


if __name__ == "__main__":
    main()
