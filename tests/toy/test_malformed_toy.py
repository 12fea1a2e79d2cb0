"""Functions of the toy, with each argument replaced by values that make no sense."""

import pytest
import torch
from hostile_arguments import check_arguments

from diffusion_bridge_vq.toy.analysis import forward_path, total_variation, toy_codes, valid_share
from diffusion_bridge_vq.toy.networks import MixtureDenoiser, SequenceVQModel
from diffusion_bridge_vq.toy.training import ToyConfig, toy_scheduler, train_toy
from diffusion_bridge_vq.toy.walks import draw_toy_latents, draw_toy_sequences, fix_toy_positions, is_toy_walk

WALKS = draw_toy_sequences(2)
LATENTS = draw_toy_latents(WALKS)
TINY = {"max_train_steps": 1, "batch_size": 2}
CALLS = {
    "toy_codes": (toy_codes, {"vqvae": SequenceVQModel(), "latents": LATENTS}),
    "valid_share": (valid_share, {"sequences": WALKS}),
    "total_variation": (total_variation, {"sequences": WALKS, "fixed": {1: 0}}),
    "forward_path": (forward_path, {"scheduler": toy_scheduler(), "latents": LATENTS}),
    "draw_toy_sequences": (draw_toy_sequences, {"num": 2, "generator": None}),
    "draw_toy_latents": (draw_toy_latents, {"sequences": WALKS, "generator": None}),
    "is_toy_walk": (is_toy_walk, {"sequences": WALKS}),
    "fix_toy_positions": (fix_toy_positions, {"codes": {1: 0}}),
    "toy_scheduler": (toy_scheduler, {"prediction_type": "sample"}),
    "ToyConfig": (
        ToyConfig,
        {
            **{"network": "paper", "end_to_end": True, "regularization": "none", "max_train_steps": 1},
            **{"batch_size": 2, "learning_rate": 0.1, "ema_decay": 0.9},
        },
    ),
    "train_toy": (train_toy, {"config": ToyConfig(**TINY), "seed": 0}),
    "MixtureDenoiser": (MixtureDenoiser, {"means": LATENTS, "std": 0.1, "scheduler": toy_scheduler()}),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_make_no_sense(name):
    check_arguments(*CALLS[name])


def test_codes_that_no_walk_has():
    with pytest.raises(ValueError, match=r"No walk has \{1: 0, 2: 4\}"):
        total_variation(torch.zeros(1, 5, dtype=torch.long), {1: 0, 2: 4})
