"""The toy of section 4.1 and appendix 10: a bridge over walks on eight points of a circle."""

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffusion_bridge_vq.sampling import inpaint_latents, sample_latents
from diffusion_bridge_vq.toy.analysis import forward_path, total_variation, toy_codes, valid_share
from diffusion_bridge_vq.toy.figures import plot_toy
from diffusion_bridge_vq.toy.networks import MixtureDenoiser
from diffusion_bridge_vq.toy.training import ToyConfig, ToyModel, toy_scheduler, train_toy
from diffusion_bridge_vq.toy.walks import (
    NOISE_STD,
    all_toy_sequences,
    draw_toy_latents,
    draw_toy_sequences,
    fix_toy_positions,
    toy_codebook,
)

STEPS = 50


def position(text: str) -> tuple[int, int]:
    s, _, code = text.partition("=")
    return int(s), int(code)


def sample(model: ToyModel, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (B, 5), and the chain that led to them, z_T first (T + 1, B, 2, 5)."""
    chain = [model.scheduler.sample_prior((num_samples, 2, 5))]
    noise = chain[0] / model.scheduler.stationary_std
    sample_latents(
        model.unet,
        model.scheduler,
        noise.shape,
        STEPS,
        latents=noise,
        solver="ancestral",
        callback=lambda i, t, z: chain.append(z),
    )
    return toy_codes(model.vqvae, chain[-1]), torch.stack(chain)


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--network", choices=("residual", "paper"), default="residual", help="see ToyConfig")
    parser.add_argument("--max-train-steps", type=int, help="instead of the network's own number")
    parser.add_argument("--num-samples", type=int, default=1000, help="behind every share")
    parser.add_argument("--fix", type=position, nargs="+", default=[(1, 0), (5, 4)], metavar="S=Q", help="q_s to fix")
    parser.add_argument("--jump-n-sample", type=int, default=10, help="resampling when inpainting; 1 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/toy"))
    args = parser.parse_args()
    if len(dict(args.fix)) < len(args.fix):
        parser.error("--fix names a position twice")
    try:
        known, mask = fix_toy_positions(dict(args.fix))
    except ValueError as error:
        parser.error(str(error))
    steps = {} if args.max_train_steps is None else {"max_train_steps": args.max_train_steps}
    settings = ToyConfig.paper if args.network == "paper" else ToyConfig
    results: dict = {}
    tensors = {}

    def report(name: str, sequences: torch.Tensor, **more) -> None:
        share = valid_share(sequences)
        results[name] = share._asdict() | more
        print(f"{name:<24} valid {share}{''.join(f', {k} {v}' for k, v in more.items())}", flush=True)

    # a) the true codebook: chains and Table 4
    fixed = train_toy(settings(**steps), args.seed)
    sequences, chain = sample(fixed, args.num_samples)
    report("fixed codebook", sequences, weights=sum(p.numel() for p in fixed.unet.parameters()))
    tensors["forward"] = forward_path(fixed.scheduler, draw_toy_latents(draw_toy_sequences(1)))[:, 0]
    tensors["reverse"] = chain[:, 0]
    table = {t: toy_codes(fixed.vqvae, chain[STEPS - t, :1])[0].tolist() for t in range(STEPS, -1, -10)}
    print("one chain: " + ", ".join(f"t = {t}: {tuple(row)}" for t, row in table.items()))

    means = torch.nn.functional.embedding(all_toy_sequences(), toy_codebook()).movedim(-1, 1)
    exact = toy_scheduler()
    exact_model = fixed._replace(unet=MixtureDenoiser(means, NOISE_STD, exact), scheduler=exact)
    report("exact denoiser", sample(exact_model, args.num_samples)[0])

    # b) end-to-end, from random codes
    tensors["true_codebook"] = toy_codebook()
    for name, form in (("end-to-end", "gamma"), ("end-to-end, no L_reg", "none")):
        model = train_toy(settings(end_to_end=True, regularization=form, **steps), args.seed)
        sequences, _ = sample(model, args.num_samples)
        codes = model.vqvae.quantize.encode_codes(draw_toy_latents(draw_toy_sequences(args.num_samples)))
        report(name, sequences, codes_used=len(codes.unique()))
        tensors["initial_codebook"] = model.initial_codebook
        tensors[f"codebook_{form}"] = model.vqvae.quantize.embedding.weight.detach()

    # c) given some positions
    for name, model in (("inpainting", fixed), ("inpainting, exact", exact_model)):
        completions = inpaint_latents(
            model.unet,
            model.scheduler,
            known.expand(args.num_samples, -1, -1),
            mask,
            STEPS,
            jump_n_sample=args.jump_n_sample,
        )
        sequences = toy_codes(model.vqvae, completions)
        report(name, sequences, total_variation=round(total_variation(sequences, dict(args.fix)), 4))
        tensors.setdefault("completions", completions[:3].clone())

    args.output_dir.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, args.output_dir / "toy.safetensors")
    record = {
        "command": " ".join(["python", *sys.argv]),
        "device": f"CPU, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
        "settings": asdict(settings(**steps)) | {"seed": args.seed, "fixed": dict(args.fix)},
        "seconds": round(time.perf_counter() - started),
        "results": results,
        "chain": table,
    }
    (args.output_dir / "toy.json").write_text(json.dumps(record, indent=1))
    figures = plot_toy(args.output_dir)
    print(f"{record['seconds']} s; results and {len(figures)} figures in {args.output_dir}")


if __name__ == "__main__":
    main()
