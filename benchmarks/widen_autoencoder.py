"""
A start for a larger autoencoder: the last level of a trained one twice as wide, and a codebook of another size.

    python benchmarks/widen_autoencoder.py outputs/vq outputs/wide --num-codes 4096 --dataset uoft-cs/cifar10
    python examples/train_vqvae.py --init-from outputs/wide ...

Each channel of the last level is doubled and its outgoing weights are halved (Net2Net, Chen et al. 2016), so the wider
network is the same function. A little noise on the copies makes them learn different things. The new codebook is
k-means of latents of training images.
"""

import argparse
from typing import Any

import torch

from diffusion_bridge_vq import GumbelVQModel
from diffusion_bridge_vq.cli import check_output_folder, errors_as_lines, finite_number, local_path, whole_number
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.pixels import to_pixels
from diffusion_bridge_vq.run_folder import RunFolder

BATCH = 256


@errors_as_lines()
@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=local_path, help="folder of a run or a pipeline, with `vqvae`")
    parser.add_argument("output_dir", type=local_path, help="folder that gets a `vqvae`")
    parser.add_argument("--num-codes", type=whole_number(2), help="default: as many, the same ones")
    parser.add_argument("--dataset", required=True, help="of training images, for the codebook")
    parser.add_argument("--num-images", type=whole_number(1), default=4096)
    parser.add_argument("--noise", type=finite_number, default=0.05, help="in standard deviations of a weight tensor")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    args = parser.parse_args()
    check_output_folder(args.output_dir)
    if RunFolder(args.output_dir).finished():
        raise ValueError(f"{args.output_dir} holds a trained model already: give another output_dir.")
    folder = RunFolder(args.run).find_component("vqvae")
    if folder is None:
        raise ValueError(f"There is no autoencoder in {args.run}: give the folder of a run or a pipeline.")
    torch.manual_seed(args.seed)
    old: Any = GumbelVQModel.from_pretrained(folder).eval()
    wide = widen(old, args.noise)
    config = old.config
    images = load_images(args.dataset, split="train", resolution=config.sample_size, channels=config.in_channels)
    chosen = torch.randperm(len(images))[: args.num_images].split(BATCH)
    batches = [to_pixels(images.__getitems__(part.tolist()).tensors["images"]) for part in chosen]
    if args.num_codes is not None:
        wide = with_codebook(wide, args.num_codes, torch.cat([wide.encode(batch).latents for batch in batches]))
    for name, model in (("before", old), ("after", wide)):
        print(f"squared error {name}: {(model(batches[0]).sample - batches[0]).square().mean():.4f}")
    wide.save_pretrained(args.output_dir / "vqvae")


def widen(old: Any, noise: float) -> Any:
    """
    The same function, with twice the channels in the last level of encoder and decoder.

    Raises:
        ValueError: an autoencoder with attention, whose weights change with the number of channels.
    """
    blocks = (*old.config.down_block_types, *old.config.up_block_types)
    if old.config.mid_block_add_attention or any("Attn" in block for block in blocks):
        raise ValueError("The autoencoder has attention, which isn't the same with more channels: give one without.")
    channels = list(old.config.block_out_channels)
    width = channels[-1]
    wide = _like(old, block_out_channels=[*channels[:-1], 2 * width])
    had, found = old.state_dict(), {}
    for name, new in wide.state_dict().items():
        if name in had:
            weight = had[name].clone()
        else:  # a shortcut where the width was the same on both sides
            weight = torch.zeros(width) if name.endswith("bias") else torch.eye(width)[:, :, None, None]
        copied = weight
        if copied.ndim and copied.shape[0] != new.shape[0]:
            copied = copied.repeat_interleave(new.shape[0] // copied.shape[0], 0)
        if copied.ndim > 1 and copied.shape[1] != new.shape[1]:
            copied = copied.repeat_interleave(2, 1) / 2
        if copied.ndim == 4 and copied.shape != weight.shape:
            copied = copied + noise * copied.std() * torch.randn_like(copied)
        found[name] = copied
    wide.load_state_dict(found)
    return wide.eval()


def with_codebook(model: Any, num_codes: int, latents: torch.Tensor) -> Any:
    """A codebook of `num_codes`, k-means of latents."""
    new = _like(model, num_vq_embeddings=num_codes)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("quantize.")}
    new.load_state_dict(kept, strict=False)
    new.quantize.initialize_codebook(latents)
    return new.eval()


def _like(model: Any, **changes: Any) -> Any:
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return GumbelVQModel(**config | changes)


if __name__ == "__main__":
    main()
