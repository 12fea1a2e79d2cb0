"""
Does the decoder learn something from training on with the prior? From one finished autoencoder a seed, at equal
processor time: the prior alone, and `--mode decoder` with codes that the prior predicts or with the images' own.

    python benchmarks/study_decoder_mode.py --seeds 0 1 2 --output-dir outputs/decoder-mode

Run again, it continues with what the output folder lacks. What was found: docs/reports/2026-11-decoder-mode.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli import check_output_folder, errors_as_lines, local_path, whole_number
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    EvaluationConfig,
    ModelOutputs,
    RealImages,
    SampleStore,
    read_results,
    run_metrics,
)
from diffusion_bridge_vq.pipelines.components import save_components
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, PriorConfig, RunConfig, Trainer, VQConfig, build_objective, train
from diffusion_bridge_vq.training.data import open_images
from diffusion_bridge_vq.training.distributed.accelerate import make_accelerator

WARM_UP, TIMED = 3, 20  # steps
PRIOR_STEPS, AUTOENCODER_STEPS = 468, 600
ARMS: dict[str, dict[str, Any]] = {
    "prior": {},
    "decoder": {"mode": "decoder", "decoder_noise": 0.5},
    "decoder-own-codes": {"mode": "decoder", "decoder_noise": 0.0},
}


@errors_as_lines()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-images", type=whole_number(2), default=1300, help="samples, and training images")
    parser.add_argument("--extractor", default="efficientnet-lite0")
    parser.add_argument("--prior-steps", type=whole_number(1), default=PRIOR_STEPS)
    parser.add_argument("--autoencoder-steps", type=whole_number(1), default=AUTOENCODER_STEPS)
    parser.add_argument("--output-dir", type=local_path, default=Path("outputs/decoder-mode"))
    args = parser.parse_args()
    check_output_folder(args.output_dir)
    steps: dict[str, int] = {}
    for seed in args.seeds:
        autoencoder = args.output_dir / f"vq-{seed}"
        if not (autoencoder / "vqvae").is_dir():
            shared = {"seed": seed, "report_to": "none", "image_every": 0}
            vq = VQConfig.from_preset(
                "digits", output_dir=autoencoder, max_train_steps=args.autoencoder_steps, **shared
            )
            save_components(train(vq) or {}, RunFolder(autoencoder))
        for arm in ARMS:
            folder = args.output_dir / f"{arm}-{seed}"
            if not steps and not (folder / "pipeline").is_dir():
                steps = equal_steps(autoencoder, args.prior_steps, folder)
                print(f"steps at equal processor time: {steps}", flush=True)
            if not (folder / "pipeline").is_dir():
                config = settings(arm, autoencoder, folder, seed, steps[arm])
                save_components(train(config) or {}, RunFolder(folder))
            evaluate(folder, args)
    print(table(args.output_dir, args.seeds))


def settings(arm: str, autoencoder: Path, folder: Path, seed: int, steps: int) -> RunConfig:
    shared = {"vqvae_from": autoencoder, "seed": seed, "max_train_steps": steps, "report_to": "none", "image_every": 0}
    if arm == "prior":
        return PriorConfig.from_preset("digits", output_dir=folder, cache_latents=True, **shared)
    return E2EConfig.from_preset("digits", output_dir=folder, joint_fraction=0.0, **shared, **ARMS[arm])


def equal_steps(autoencoder: Path, prior_steps: int, folder: Path) -> dict[str, int]:
    """Steps of each arm that take the processor time of `prior_steps` of the prior alone."""
    seconds = {arm: seconds_per_step(settings(arm, autoencoder, folder / "timed", 0, 1000)) for arm in ARMS}
    return {arm: max(1, round(prior_steps * seconds["prior"] / own)) for arm, own in seconds.items()}


def seconds_per_step(config: RunConfig) -> float:
    """Processor time, the median."""
    images = open_images(config)
    trainer = Trainer(config, make_accelerator(config), build_objective(config, images.num_classes), images)
    trainer.model.train()
    batches, times = trainer.batches(), []
    for step in range(WARM_UP + TIMED):
        start = time.process_time()
        trainer.step(next(batches), step)
        trainer.ema.update_parameters(trainer.trained, 0.99)
        times.append(time.process_time() - start)
    return sorted(times[WARM_UP:])[TIMED // 2]


def evaluate(folder: Path, args: argparse.Namespace) -> None:
    pipe = DiffusionBridgeVQPipeline.from_pretrained(folder / "pipeline")
    size = {"resolution": 16, "channels": 1}
    train_images = load_images("digits", split="train", **size)
    real = RealImages(  # of the training split, since the test split has 297
        *("digits", train_images, train_images, args.num_images, args.extractor, "cpu", args.output_dir / "features")
    )
    config = EvaluationConfig(num_inference_steps=20, solver="dpmsolver++")
    outputs = ModelOutputs(folder.name, pipe, real, SampleStore(folder / "figures.safetensors"), config, 64)
    run_metrics(("fid", "rfid", "reconstruction"), outputs, args.output_dir)


def table(folder: Path, seeds: list[int]) -> str:
    """A row for each arm, a value for each seed."""
    found = {(r["model"], r["name"]): r["value"] for r in read_results(folder / "results.json")}
    names = ("frechet_real", "frechet", "frechet_reconstruction", "psnr", "precision", "recall")
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for arm in ARMS:
        cells = [
            ", ".join(f"{found.get((f'{arm}-{seed}', name), float('nan')):.3g}" for seed in seeds) for name in names
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
