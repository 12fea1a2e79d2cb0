"""
Does the decoder learn something from training on with the prior, or after it? From one finished autoencoder a seed, at
equal processor time: the prior alone, and `--mode decoder` with codes that the prior predicts or with the images' own.
Then at twice that time: the prior alone, and the prior for the first half and the decoder alone for the second.

    python benchmarks/study_decoder_mode.py --seeds 0 1 2 --output-dir outputs/decoder-mode
    python benchmarks/study_decoder_mode.py --arms prior prior-twice decoder-after decoder-after-adversarial

Run again, it continues with what the output folder lacks. What was found: docs/reports/2026-11-decoder-mode.md.
"""

import argparse
import json
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
from diffusion_bridge_vq.pipelines.components import save_trained
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, PriorConfig, RunConfig, Trainer, VQConfig, build_objective, train
from diffusion_bridge_vq.training.data import open_images
from diffusion_bridge_vq.training.distributed.accelerate import make_accelerator

FIRST, WARM_UP, TIMED = 500, 3, 20  # steps; the first of 1,000, where the discriminator has joined
PRIOR_STEPS, AUTOENCODER_STEPS = 468, 600
SETTINGS = "settings.json"
ARMS: dict[str, tuple[type[RunConfig], dict[str, Any]]] = {
    "prior": (PriorConfig, {"cache_latents": True}),
    "decoder": (E2EConfig, {"mode": "decoder", "decoder_noise": 0.5, "joint_fraction": 0.0}),
    "decoder-own-codes": (E2EConfig, {"mode": "decoder", "decoder_noise": 0.0, "joint_fraction": 0.0}),
    # twice the time:
    "prior-twice": (PriorConfig, {"cache_latents": True}),
    "decoder-after": (VQConfig, {"decoder_only": True}),
    "decoder-after-adversarial": (
        VQConfig,
        {"decoder_only": True, "adversarial_weight": 0.2, "adversarial_fraction": 0.1},
    ),
}


@errors_as_lines()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS), help="`decoder-after` needs `prior`")
    parser.add_argument("--num-images", type=whole_number(2), default=1300, help="samples, and training images")
    parser.add_argument("--extractor", default="efficientnet-lite0")
    parser.add_argument("--prior-steps", type=whole_number(1), default=PRIOR_STEPS)
    parser.add_argument("--autoencoder-steps", type=whole_number(1), default=AUTOENCODER_STEPS)
    parser.add_argument("--output-dir", type=local_path, default=Path("outputs/decoder-mode"))
    args = parser.parse_args()
    check_output_folder(args.output_dir)
    arms = [arm for arm in ARMS if arm in args.arms]
    missing = [seed for seed in args.seeds if not (args.output_dir / f"prior-{seed}" / "pipeline").is_dir()]
    if "prior" not in arms and missing and any(ARMS[arm][0] is VQConfig for arm in arms):
        raise ValueError("A decoder is trained after the arm prior: add it to --arms.")
    study = read_study(args)
    for seed in args.seeds:
        autoencoder = args.output_dir / f"vq-{seed}"
        if not (autoencoder / "vqvae").is_dir():
            shared = {"seed": seed, "report_to": "none", "image_every": 0}
            vq = VQConfig.from_preset(
                "digits", output_dir=autoencoder, max_train_steps=args.autoencoder_steps, **shared
            )
            save_trained(train(vq) or {}, RunFolder(autoencoder))
        for arm in arms:
            folder = args.output_dir / f"{arm}-{seed}"
            start = args.output_dir / f"prior-{seed}" if ARMS[arm][0] is VQConfig else autoencoder
            if "steps" not in study:
                study["steps"] = equal_steps(args, autoencoder)
                write_study(args, study)
                print(f"steps at equal processor time: {study['steps']}", flush=True)
            if not (folder / "pipeline").is_dir():
                config = settings(arm, start, folder, seed, study["steps"][arm])
                save_trained(train(config) or {}, RunFolder(folder))
            evaluate(folder, args)
    print(table(args))


def read_study(args: argparse.Namespace) -> dict[str, Any]:
    """
    What settings.json has: the settings of the study, and the steps of each arm once they were measured. All starts of
    it share them, so that its seeds and arms can be compared.

    Raises:
        ValueError: the folder has a study of other settings, or one whose settings weren't written.
    """
    names = ("num_images", "extractor", "prior_steps", "autoencoder_steps")
    asked = {name: getattr(args, name) for name in names}
    path = args.output_dir / SETTINGS
    if path.is_file():
        study = json.loads(path.read_text(encoding="utf-8"))
        if study["settings"] != asked:
            raise ValueError(f"{path} has {study['settings']}, not {asked}: give another --output-dir.")
        return study
    if runs := sorted(folder.name for folder in args.output_dir.glob("*-[0-9]*") if folder.is_dir()):
        raise ValueError(
            f"{args.output_dir} has {', '.join(runs[:3])}, but no {SETTINGS} that says of what settings: give another "
            "--output-dir."
        )
    study = {"settings": asked}
    write_study(args, study)
    return study


def write_study(args: argparse.Namespace, study: dict[str, Any]) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / SETTINGS).write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")


def settings(arm: str, start: Path, folder: Path, seed: int, steps: int) -> RunConfig:
    cls, changes = ARMS[arm]
    shared = {"seed": seed, "max_train_steps": steps, "report_to": "none", "image_every": 0}
    shared["init_from" if cls is VQConfig else "vqvae_from"] = start
    return cls.from_preset("digits", output_dir=folder, **shared, **changes)


def equal_steps(args: argparse.Namespace, autoencoder: Path) -> dict[str, int]:
    """Steps of all arms that take the processor time of `--prior-steps` of the prior alone."""
    timed = {arm: settings(arm, autoencoder, args.output_dir / "timed", 0, 1000) for arm in ARMS}
    seconds = {arm: seconds_per_step(config) for arm, config in timed.items()}
    steps = {arm: max(1, round(args.prior_steps * seconds["prior"] / own)) for arm, own in seconds.items()}
    return steps | {"prior-twice": 2 * args.prior_steps}


def seconds_per_step(config: RunConfig) -> float:
    """Processor time, the median."""
    images = open_images(config)
    trainer = Trainer(config, make_accelerator(config), build_objective(config, images.num_classes), images)
    trainer.model.train()
    batches, times = trainer.batches(), []
    for step in range(WARM_UP + TIMED):
        start = time.process_time()
        trainer.step(next(batches), FIRST + step)
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


def table(args: argparse.Namespace) -> str:
    """A row for each arm, a value for each seed."""
    found = {(r["model"], r["name"]): r["value"] for r in read_results(args.output_dir / "results.json")}
    names = ("frechet_real", "frechet", "frechet_reconstruction", "psnr", "precision", "recall")
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for arm in args.arms:
        cells = [
            ", ".join(f"{found.get((f'{arm}-{seed}', name), float('nan')):.3g}" for seed in args.seeds)
            for name in names
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
