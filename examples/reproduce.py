"""
The paper's comparison in stages: autoencoder; bridge and PixelCNN on its latents, for the same time each; the bridge
end-to-end from the same start; evaluation and tables. A stage that is done is skipped, one that was cut off goes on
with the same command, so `timeout 500 python examples/reproduce.py ...` can be repeated until it returns 0.
"""

import argparse
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evaluate import add_evaluation_arguments, evaluation_settings, say_how_to_go_on

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNVQPipeline
from diffusion_bridge_vq.evaluation import METRICS, evaluate_pipelines, write_report
from diffusion_bridge_vq.training import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, train
from diffusion_bridge_vq.training.fault_tolerance.checkpoint import list_checkpoints
from diffusion_bridge_vq.training.time_budget import steps_within

STAGES = ("vq", "bridge", "pixelcnn", "bridge-e2e", "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", default="cifar10-tiny")
    parser.add_argument("--dataset", required=True, help="as for the training scripts")
    parser.add_argument("--budget", type=float, default=120, help="seconds of training in each of the four runs")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES, help="one or several; all by default")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU if there is one")
    add_evaluation_arguments(parser)
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS, help="all by default")
    parser.add_argument("--batch-size", type=int, default=None, help="of the training runs, instead of the preset's")
    parser.add_argument("--mixed-precision", default=None, help="of the training runs: no, fp16 or bf16")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/reproduce"))
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # read by every Accelerator
    signal.signal(signal.SIGTERM, say_how_to_go_on)
    try:
        for stage in args.stage:
            if stage == "evaluate":
                evaluate(args)
            else:
                train_stage(args, stage)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def train_stage(args: argparse.Namespace, stage: str) -> None:
    folder, tokenizer = args.output_dir / stage, args.output_dir / "vq"
    if any((folder / done).is_dir() for done in ("vqvae", "pipeline")):
        refuse_another(folder, preset=args.preset, dataset=args.dataset, split=args.train_split, seed=args.seed)
        print(f"{stage}: done before, {folder}")
        return
    cls, settings = {
        "vq": (VQConfig, {}),
        "bridge": (PriorConfig, {"init_from": tokenizer, "cache_latents": True}),
        "pixelcnn": (PixelCNNConfig, {"init_from": tokenizer}),
        "bridge-e2e": (E2EConfig, {"init_from": tokenizer, "joint_fraction": 0.0}),
    }[stage]
    shared: dict[str, Any] = {"dataset": args.dataset, "split": args.train_split, "image_column": args.image_column}
    shared |= {"output_dir": folder, "seed": args.seed, "num_inference_steps": args.num_inference_steps}
    for option in ("mixed_precision", "batch_size"):
        if getattr(args, option) is not None:
            shared[option] = getattr(args, option)
    config = cls.from_preset(args.preset, **shared, **settings, image_every=0)
    steps = remembered(folder / "steps.json", lambda: steps_within(config, args.budget))
    resume = bool(list_checkpoints(folder / "checkpoints"))
    # so that a run that is killed without warning loses a quarter of its budget at most
    config = replace(config, max_train_steps=steps, checkpoint_every=max(1, steps // 4), resume=resume)
    trained = train(config)
    if trained is None:  # not the main process
        return
    if stage == "vq":
        saved, name = trained.vqvae, "vqvae"
    elif stage == "pixelcnn":
        saved, name = PixelCNNVQPipeline(trained.vqvae, trained.prior), "pipeline"
    else:
        saved, name = DiffusionBridgeVQPipeline(trained.vqvae, trained.unet, trained.scheduler), "pipeline"
    saved.save_pretrained(folder / f"{name}.partial")
    os.replace(folder / f"{name}.partial", folder / name)  # what has this name is whole
    print(f"{stage}: {steps} steps, {folder}")


def refuse_another(folder: Path, **asked: Any) -> None:
    """
    Raises:
        ValueError: the run in `folder` had other settings.
    """
    path = folder / "config.json"
    had = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else asked  # a carried one has only weights
    for name, value in asked.items():
        if had[name] != value:
            raise ValueError(f"{folder} has {name} {had[name]}, not {value}: give another --output-dir.")


def remembered(path: Path, compute: Callable[[], int]) -> int:
    """What an earlier start of the same stage computed, so that it goes on with the same number."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(compute()))
        os.replace(temporary, path)
    return json.loads(path.read_text())


def evaluate(args: argparse.Namespace) -> None:
    """Measures what results.json lacks of the models that there are."""
    folders = {model: args.output_dir / model / "pipeline" for model in STAGES[1:4]}
    folders = {model: folder for model, folder in folders.items() if folder.is_dir()}
    if not folders:
        raise ValueError(f"{args.output_dir} has no pipeline to evaluate: run {', '.join(STAGES[1:4])} before.")
    for model in folders:
        refuse_another(args.output_dir / model, preset=args.preset)
    output = args.output_dir / "evaluation"
    evaluate_pipelines(
        folders,
        args.dataset,
        output,
        metrics=args.metrics,
        **evaluation_settings(args),
        device="cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu",
        preset=args.preset,
    )
    print(f"written: {', '.join(str(path) for path in write_report(output))}")


if __name__ == "__main__":
    main()
