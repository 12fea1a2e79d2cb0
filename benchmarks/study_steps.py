"""
How many steps of which solver one trained bridge wants: Frechet distance and KL of codes for every number of steps,
solver and spacing, as results.json, steps.md and steps.png. What is measured already is skipped, so that a study that
was cut off goes on and one that is done can be widened.

    python benchmarks/study_steps.py outputs/demo/pipeline --seeds 0 1 2 --output-dir outputs/steps

The Frechet distance is that of samples and training images that went through the codes, too: of the latents of the
codes, all positions together ("latents", for small models: it takes more images than there are coordinates), or of
what an extractor of evaluate.py sees in the decoded images. With as many steps as the scheduler has levels there is
one spacing, "all".
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli import (
    check_output_folder,
    check_output_image,
    default_device,
    errors_as_lines,
    local_path,
    whole_number,
)
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels
from diffusion_bridge_vq.evaluation import (
    EXTRACTORS,
    append_result,
    code_kl,
    extract,
    fingerprint,
    frechet_distance,
    load_extractor,
    read_results,
)
from diffusion_bridge_vq.figures import new_figure, save_figure

SOLVERS = ("dpmsolver++", "ddim", "ancestral")
SPACINGS = ("logsnr", "trailing", "linspace", "leading")
TITLES = {"frechet": "Frechet distance", "kl": "KL of codes, nats"}
KEYS = ("name", "weights", "dataset", "split", "features", "solver", "spacing", "steps", "n", "seed")


@errors_as_lines()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub id of a saved bridge")
    parser.add_argument("--dataset", default="digits", help="as for the training scripts; default: digits")
    parser.add_argument("--split", default="train", help="images that the model was trained on; default: train")
    parser.add_argument("--steps", type=whole_number(1), nargs="+", default=[4, 8, 12, 20, 50, 250, 1000])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=SOLVERS)
    parser.add_argument("--spacings", nargs="+", choices=SPACINGS, default=SPACINGS)
    parser.add_argument(
        "--seeds", type=whole_number(0), nargs="+", default=[0], help="sets of samples, averaged in the table"
    )
    parser.add_argument("--num-images", type=whole_number(1), default=1000, help="samples of each; default: 1000")
    parser.add_argument("--features", choices=("latents", *EXTRACTORS), default="latents", help="default: latents")
    parser.add_argument("--batch-size", type=whole_number(1), default=250)
    parser.add_argument("--output-dir", type=local_path, default="outputs/steps")
    parser.add_argument("--plot", type=local_path, help="the figure; default: steps.png in the output folder")
    args = parser.parse_args()
    check_output_folder(args.output_dir)
    if args.plot is not None:
        check_output_image(args.plot)
    path, facts = study(args)
    wanted = {"n": args.num_images, **facts}
    rows = [r for r in read_results(path) if all(r.get(key) == value for key, value in wanted.items())]
    text = "\n".join(table(rows, name) for name in TITLES)
    (args.output_dir / "steps.md").write_text(text)
    print(text)
    plot(rows, args.plot or args.output_dir / "steps.png")


def study(args: argparse.Namespace) -> tuple[Path, dict[str, str]]:
    """Measures what results.json lacks, the fewest steps first; returns its path, and what all of these share."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    done = {tuple(r.get(key) for key in KEYS) for r in (read_results(path) if path.is_file() else [])}
    device = default_device(float64=True).type
    pipe = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline).to(device)
    pipe.set_progress_bar_config(disable=True)
    measure = SampleMeasure(pipe, args)
    facts = {"weights": fingerprint(*pipe.components.values()), "dataset": args.dataset, "split": args.split}
    facts["features"] = args.features

    def add(solver: str, spacing: str, steps: int, seed: int, values: dict[str, float]) -> None:
        own = {"solver": solver, "spacing": spacing, "steps": steps, "n": args.num_images, "seed": seed}
        for name, value in values.items():
            append_result(path, name, value, **own, **facts, device=device)

    def is_done(solver: str, spacing: str, steps: int, seed: int) -> bool:
        own = (*facts.values(), solver, spacing, steps, args.num_images, seed)
        return all((name, *own) in done for name in TITLES)

    if not is_done("real", "all", 0, 0):
        add("real", "all", 0, 0, measure.floor(args.num_images))
    levels = pipe.scheduler.config.num_train_timesteps
    for steps in sorted(args.steps):
        for seed in args.seeds:
            for solver in args.solvers:
                for spacing in args.spacings if steps < levels else ("all",):
                    if is_done(solver, spacing, steps, seed):
                        continue
                    call = {"solver": solver, "num_inference_steps": steps}
                    if spacing != "all":
                        call["timestep_spacing"] = spacing
                    values = measure(draw_codes(pipe, args.num_images, args.batch_size, seed, **call))
                    add(solver, spacing, steps, seed, values)
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                    print(f"{steps:5} steps, {solver:12} {spacing:9} seed {seed}: {shown}", flush=True)
    return path, facts


def draw_codes(pipe: DiffusionBridgeVQPipeline, n: int, batch_size: int, seed: int, **call: Any) -> torch.Tensor:
    """(n, h, w) on the CPU; the same seed starts every solver from the same noise."""
    generator, codes = torch.Generator(pipe.device).manual_seed(seed), []
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        z_0 = pipe(batch_size=count, generator=generator, output_type="latent", **call).images
        codes.append(pipe.vqvae.encode_codes(z_0).cpu())
    return torch.cat(codes)


class SampleMeasure:
    """Holds maps of codes against those of the training images."""

    @torch.no_grad()
    def __init__(self, pipe: DiffusionBridgeVQPipeline, args: argparse.Namespace):
        self.pipe, self.batch_size = pipe, args.batch_size
        config = pipe.vqvae.config
        images = load_images(
            args.dataset, split=args.split, resolution=config.sample_size, channels=config.in_channels
        )
        self.extractor = None if args.features == "latents" else load_extractor(args.features, pipe.device)
        batches = (images.__getitems__(list(part)) for part in torch.arange(len(images)).split(args.batch_size))
        self.codes = torch.cat([self._encode(torch.stack([item["images"] for item in part])) for part in batches])
        self.reference = self._features(self.codes)
        dimensions = self.reference.shape[1]
        if min(args.num_images, len(self.codes)) <= dimensions:  # frechet_distance's own error comes after all work
            raise ValueError(
                f"{args.num_images} samples and {len(self.codes)} images can't be compared by features of "
                f"{dimensions} dimensions: --num-images and the data must have at least {dimensions + 1}."
            )

    def __call__(self, codes: torch.Tensor) -> dict[str, float]:
        size = min(len(codes), len(self.codes))  # equal sets, evenly taken: a smaller one is smoothed more
        real = self.codes[torch.linspace(0, len(self.codes) - 1, size).long()]
        return {
            "frechet": frechet_distance(self._features(codes), self.reference),
            "kl": code_kl(codes[:size], real, self.pipe.vqvae.config.num_vq_embeddings).mean().item(),
        }

    def floor(self, n: int) -> dict[str, float]:
        """
        About what `n` more real images would get: between halves of the training images, brought to the sizes that
        are compared otherwise. Between sets of one law both measures fall as 1/n, to leading order.
        """
        halves = [self.codes[start::2][: len(self.codes) // 2] for start in (0, 1)]
        frechet = frechet_distance(*map(self._features, halves))
        kl = code_kl(*halves, self.pipe.vqvae.config.num_vq_embeddings).mean().item()
        of_halves, size = 2 / len(halves[0]), min(n, len(self.codes))
        return {"frechet": frechet * (1 / n + 1 / len(self.codes)) / of_halves, "kl": kl * (2 / size) / of_halves}

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        pixels = to_pixels(images.to(self.pipe.device))
        return self.pipe.vqvae.encode_codes(self.pipe.vqvae.encode(pixels).latents).cpu()

    @torch.no_grad()
    def _features(self, codes: torch.Tensor) -> torch.Tensor:
        parts = [part.to(self.pipe.device) for part in codes.split(self.batch_size)]
        if self.extractor is None:
            return torch.cat([self.pipe.vqvae.decode_codes(part).flatten(1).cpu() for part in parts])
        return extract(self.extractor, self._decode(parts))

    def _decode(self, parts: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        for part in parts:
            z_q = self.pipe.vqvae.decode_codes(part)
            pixels = self.pipe.vqvae.decode(z_q, force_not_quantize=True).sample
            yield to_bytes(pixels)


def means(rows: list[dict[str, Any]], name: str) -> dict[tuple[str, str], dict[int, list[float]]]:
    """{(solver, spacing): {steps: values of all seeds}}; the only spacing of all levels belongs to every curve."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    mine = [r for r in rows if r["name"] == name and r["solver"] != "real"]
    for r in sorted(mine, key=lambda r: (SOLVERS.index(r["solver"]), r["spacing"] != "all", r["steps"])):
        own = [s for s in SPACINGS if any((o["solver"], o["spacing"]) == (r["solver"], s) for o in mine)]
        for spacing in own or ["all"] if r["spacing"] == "all" else [r["spacing"]]:
            found.setdefault((r["solver"], spacing), {}).setdefault(r["steps"], []).append(r["value"])
    return found


def table(rows: list[dict[str, Any]], name: str) -> str:
    """Markdown: a row per number of steps, a column per solver and spacing, mean (and range over seeds)."""
    curves = means(rows, name)
    columns = sorted(curves, key=lambda c: (SOLVERS.index(c[0]), (*SPACINGS, "all").index(c[1])))
    real = [r["value"] for r in rows if r["name"] == name and r["solver"] == "real"]
    n = rows[0]["n"] if rows else 0
    lines = [f"{TITLES[name]}, n = {n}; real images: about {real[0]:.3g}" if real else TITLES[name], ""]
    lines += ["| steps | " + " | ".join(", ".join(c) for c in columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for steps in sorted({s for values in curves.values() for s in values}):
        cells = []
        for column in columns:
            values = curves[column].get(steps, [])
            spread = f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.3g}{spread}" if values else "")
        lines.append(f"| {steps:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Both measures over the number of steps; nothing without matplotlib."""
    figure = new_figure(figsize=(11, 4.2))
    if figure is None:
        return
    styles = dict(zip(SPACINGS, ("-", "--", "-.", ":"), strict=True)) | {"all": "-"}
    panels = figure.subplots(1, len(TITLES))
    for axes, name in zip(panels, TITLES, strict=True):
        for (solver, spacing), values in means(rows, name).items():
            steps = sorted(values)
            middle = [sum(values[s]) / len(values[s]) for s in steps]
            color = f"C{SOLVERS.index(solver)}"
            axes.plot(steps, middle, styles[spacing], marker=".", label=f"{solver}, {spacing}", color=color)
            low, high = ([pick(values[s]) for s in steps] for pick in (min, max))
            axes.fill_between(steps, low, high, alpha=0.12, color=color)
        for r in rows:
            if (r["name"], r["solver"]) == (name, "real"):
                axes.axhline(r["value"], color="gray", linewidth=0.8, label="real images")
        axes.set(xscale="log", yscale="log", xlabel="steps", title=TITLES[name])
        ticks = sorted({r["steps"] for r in rows} - {0})
        axes.set_xticks(ticks, [f"{s:,}" for s in ticks], minor=False)
        low, high = axes.get_ylim()
        marks = [m * 10**e for e in range(-4, 5) for m in (1, 2, 5) if low <= m * 10**e <= high]
        axes.set_yticks(marks, [f"{m:g}" for m in marks])
        axes.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"figure: {save_figure(figure, path)}")


if __name__ == "__main__":
    main()
