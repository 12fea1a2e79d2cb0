"""Functions of the toy, with each argument replaced by values that make no sense."""

import re

import pytest
import torch
from hostile_arguments import check_arguments

from diffusion_bridge_vq.sampling.chain import MAX_REPETITIONS
from diffusion_bridge_vq.toy import experiment
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


@pytest.mark.parametrize("fixed", [{1: 0, 2: 4}, {1: 0, 5: 1}, {2: 0, 4: 4}])
def test_codes_that_no_walk_has(fixed):
    """Impossible at once; of another parity after four steps; too far after two."""
    with pytest.raises(ValueError, match=f"No walk has {re.escape(str(fixed))}"):
        total_variation(torch.zeros(1, 5, dtype=torch.long), fixed)
    with pytest.raises(ValueError, match="No walk has"):
        fix_toy_positions(fixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": {1: 0, 2: 4}}, "No walk has"),
        ({"jump_n_sample": MAX_REPETITIONS + 1}, "`jump_n_sample` must be at most 1000, got 1001"),
        ({"num_samples": 2}, "`num_samples` must be at least 3, got 2"),
    ],
)
def test_the_experiment_refuses_before_it_trains(options, message, monkeypatch):
    monkeypatch.setattr(experiment, "train_toy", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=message):
        experiment.run_toy(**{"fixed": {1: 0}} | options)
