"""
What a model of words makes of new combinations: it draws labels of a test split, as a sheet with the words above each
picture.

    python benchmarks/study_words.py outputs/emoji --dataset data/emoji --label-column name,style --output words.png

Drawn are those labels of the first column whose words the model knows all, and no training image has all of. The text
of the other columns (a style, say) is the next one each time.
"""

import argparse
import textwrap
from typing import Any

import torch

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli import check_output_image, errors_as_lines, finite_number, local_path, whole_number
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.figures import new_figure, save_figure
from diffusion_bridge_vq.models.conditions import split_words

COLUMNS = 10


@errors_as_lines()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a run or of a saved pipeline that draws from words")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--image-column")
    parser.add_argument("--label-column", required=True, help="the texts, the one that is new first")
    parser.add_argument("--num-inference-steps", type=whole_number(1), help="none: the pipeline's own")
    parser.add_argument("--guidance-scale", type=finite_number, help="none: the pipeline's own")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--output", type=local_path, default="words.png", help="the sheet")
    args = parser.parse_args()
    check_output_image(args.output)
    figure = new_figure(figsize=(COLUMNS * 1.3, 1))
    if figure is None:
        raise SystemExit(1)
    pipe: Any = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    texts = new_combinations(pipe, args.dataset, args.label_column.split(","), args.image_column)
    if not texts:
        raise ValueError(f"{args.dataset} has no new combination of known words in its test split.")
    print(f"{len(texts)} new combinations of known words:\n" + "\n".join(texts))
    images = pipe(
        class_labels=texts,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        generator=torch.Generator().manual_seed(args.seed),
    ).images
    rows = -(-len(texts) // COLUMNS)
    figure.set_size_inches(COLUMNS * 1.3, rows * 1.75)
    for number, (axes, text, image) in enumerate(
        zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, texts, images, strict=False), start=1
    ):
        axes.imshow(image)
        axes.set_title(textwrap.fill(f"{number} {text.lower()}", 20), fontsize=6)
    for axes in figure.axes:
        axes.set_axis_off()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    print(f"Written: {save_figure(figure, args.output)}")


def new_combinations(pipe: Any, dataset: str, columns: list[str], image_column: str | None) -> list[str]:
    """Texts of the test split: of each first text one, with the other columns' texts in turn."""
    known = set((pipe.id2label or {}).values())
    if not pipe.config.get("label_words"):
        raise ValueError("This model doesn't draw from words: give one that was trained with --label-words.")
    size = {"resolution": pipe.vqvae.config.sample_size, "channels": pipe.vqvae.config.in_channels}
    options = {**size, "image_column": image_column, "in_memory": False}
    names, others = (
        load_images(dataset, split="test", label_column=column, **options).class_names
        for column in (columns[0], ",".join(columns[1:]) or columns[0])
    )
    seen = [set(split_words(text)) for text in load_images(dataset, label_column=columns[0], **options).class_names]
    chosen = []
    for name in names:
        words = set(split_words(name))
        if words <= known and not any(words <= of_image for of_image in seen):
            chosen.append(f"{name}, {others[len(chosen) % len(others)]}" if columns[1:] else name)
    return chosen


if __name__ == "__main__":
    main()
