"""What a step does to weights and images, against torch's own pieces put together by hand."""

import copy
import itertools

import torch
from tiny_run import config

from diffusion_bridge_vq.training import Trainer, VQConfig, build_objective
from diffusion_bridge_vq.training.data import open_images
from diffusion_bridge_vq.training.distributed.accelerate import make_accelerator


def make_run(tmp_path, **overrides):
    settings = config(VQConfig, tmp_path, max_grad_norm=0.01, weight_decay=0.3, lr_warmup_steps=0, **overrides)
    accelerator, images = make_accelerator(settings), open_images(settings)
    return settings, Trainer(settings, accelerator, build_objective(settings, images.num_classes), images)


def test_steps_are_clipping_and_adamw_with_weight_decay(tmp_path):
    """Two, since the first of Adam doesn't depend on the gradients' scale."""
    settings, run = make_run(tmp_path)
    run.model.train()
    twin = copy.deepcopy(run.objective)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.3)
    norms = []
    for step, batch in enumerate(itertools.islice(run.batches(), 2)):
        run.step(batch, step)
        optimizer.zero_grad()
        torch.stack(list(twin(batch["images"].float() / 127.5 - 1).losses.values())).sum().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.01))
        optimizer.step()
    assert min(norms) > 0.02 and abs(norms[0] / norms[1] - 1) > 0.05  # so that clipping matters
    for (name, trained), expected in zip(run.objective.named_parameters(), twin.parameters(), strict=True):
        # what shifts all latents alike is taken away by the normalizer: its gradient is rounding
        if name not in ("vqvae.encoder.conv_out.bias", "vqvae.quant_conv.bias"):
            assert torch.allclose(trained, expected, rtol=0, atol=1e-5), name


def test_flips_are_from_left_to_right_and_of_half_the_images(tmp_path):
    _, run = make_run(tmp_path, random_flip=True)
    images = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8)
    pixels = run.inputs({"images": images})["images"]
    original = images.float() / 127.5 - 1
    mirrored = (pixels != original).flatten(1).any(dim=1)
    assert torch.equal(pixels[mirrored], original[mirrored].flip(-1))
    assert 140 < mirrored.sum() < 260  # six standard deviations
