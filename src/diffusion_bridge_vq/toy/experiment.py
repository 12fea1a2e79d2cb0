"""Everything that section 4.1 and appendix 10 show of the toy, in one call."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch.nn.functional import embedding

from ..evaluation.arguments import check_count
from ..losses import Regularization
from ..sampling import inpaint_latents, sample_latents
from ..sampling.chain import MAX_REPETITIONS
from .analysis import forward_path, total_variation, toy_codes, valid_share
from .networks import MixtureDenoiser
from .training import ToyConfig, ToyModel, toy_scheduler, train_toy
from .walks import (
    NOISE_STD,
    all_toy_sequences,
    draw_toy_latents,
    draw_toy_sequences,
    fix_toy_positions,
    toy_codebook,
)

STEPS = 50
FEWEST_SAMPLES = 3  # completions in the figure


class ToyResults(NamedTuple):
    """
    Args:
        shares (`dict`): by name, the share of valid sequences and what else was measured.
        tensors (`dict[str, torch.Tensor]`): what `plot_toy` draws.
        chain (`dict[int, list[int]]`): {t: the codes of one chain}, Table 4.
        settings (`dict[str, Any]`): of the training with the true codebook.
    """

    shares: dict[str, dict[str, Any]]
    tensors: dict[str, torch.Tensor]
    chain: dict[int, list[int]]
    settings: dict[str, Any]


def run_toy(
    fixed: Mapping[int, int],
    paper_network: bool = False,
    max_train_steps: int | None = None,
    num_samples: int = 1000,
    jump_n_sample: int = 10,
    seed: int = 0,
) -> ToyResults:
    """
    Train the toy with its true codebook and end-to-end, with and without L^reg; draw sequences, and complete some.

    Args:
        fixed (`Mapping[int, int]`): {s: q_s}, the positions that completions are given.
        paper_network (`bool`, *optional*, defaults to `False`): see [`ToyConfig`].
        max_train_steps (`int`, *optional*): instead of the network's own number.
        num_samples (`int`, *optional*, defaults to 1000): behind every share, at least 3.
        jump_n_sample (`int`, *optional*, defaults to 10): resampling when inpainting, at most 1000; 1 for none.
        seed (`int`, *optional*, defaults to 0): of everything.

    Raises:
        TypeError, ValueError: numbers, positions or codes outside their range, codes that no walk has together, or
            another kind of number.
    """
    check_count("num_samples", num_samples, FEWEST_SAMPLES)
    check_count("jump_n_sample", jump_n_sample, highest=MAX_REPETITIONS)
    known, mask = fix_toy_positions(fixed)
    steps = {} if max_train_steps is None else {"max_train_steps": max_train_steps}
    config = (ToyConfig.paper if paper_network else ToyConfig)(**steps)  # type: ignore[arg-type]
    shares: dict[str, dict[str, Any]] = {}
    tensors: dict[str, torch.Tensor] = {}

    def report(name: str, sequences: torch.Tensor, **more: Any) -> None:
        share = valid_share(sequences)
        shares[name] = share._asdict() | more
        print(f"{name:<24} valid {share}{''.join(f', {k} {v}' for k, v in more.items())}", flush=True)

    # a) the true codebook: chains and Table 4
    trained = train_toy(config, seed)
    sequences, chain = _draw(trained, num_samples)
    report("fixed codebook", sequences, weights=sum(p.numel() for p in trained.unet.parameters()))
    tensors["forward"] = forward_path(trained.scheduler, draw_toy_latents(draw_toy_sequences(1)))[:, 0]
    tensors["reverse"] = chain[:, 0]
    table = {t: toy_codes(trained.vqvae, chain[STEPS - t, :1])[0].tolist() for t in range(STEPS, -1, -10)}
    print("one chain: " + ", ".join(f"t = {t}: {tuple(row)}" for t, row in table.items()))

    means = embedding(all_toy_sequences(), toy_codebook()).movedim(-1, 1)
    exact_scheduler = toy_scheduler()
    exact_denoiser = MixtureDenoiser(means, NOISE_STD, exact_scheduler)
    exact = trained._replace(unet=exact_denoiser, scheduler=exact_scheduler)
    report("exact denoiser", _draw(exact, num_samples)[0])

    # b) end-to-end, from random codes
    tensors["true_codebook"] = toy_codebook()
    forms: dict[str, Regularization] = {"end-to-end": "gamma", "end-to-end, no L_reg": "none"}
    for name, form in forms.items():
        model = train_toy(replace(config, end_to_end=True, regularization=form), seed)
        sequences, _ = _draw(model, num_samples)
        codes = model.vqvae.quantize.encode_codes(draw_toy_latents(draw_toy_sequences(num_samples)))
        report(name, sequences, codes_used=len(codes.unique()))
        tensors["initial_codebook"] = model.initial_codebook
        tensors[f"codebook_{form}"] = model.vqvae.quantize.embedding.weight.detach()

    # c) given some positions
    for name, model in (("inpainting", trained), ("inpainting, exact", exact)):
        given = known.expand(num_samples, -1, -1)
        completions = inpaint_latents(
            model.unet, model.scheduler, given, mask, STEPS, jump_n_sample=jump_n_sample, solver="ancestral"
        )
        sequences = toy_codes(model.vqvae, completions)
        report(name, sequences, total_variation=round(total_variation(sequences, dict(fixed)), 4))
        tensors.setdefault("completions", completions[:FEWEST_SAMPLES].clone())
    return ToyResults(shares, tensors, table, asdict(config))


def _draw(model: ToyModel, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
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
