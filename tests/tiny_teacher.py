"""A tiny bridge as the teacher of students, its trajectories, and the settings of a run that learns from them."""

import torch
from accelerate import Accelerator
from tiny_models import make_autoencoder, make_unet
from tiny_run import SETTINGS

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.training import DistillConfig, draw_trajectories

BRIDGE = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "eta": 2.0, "prediction_type": "sample"}


def save_teacher(folder, **settings):
    """An untrained bridge of three classes, for images 8 x 8; `settings` are further ones of its pipeline."""
    torch.manual_seed(0)
    vqvae = make_autoencoder(sample_size=8, in_channels=1, out_channels=1).eval()
    unet = make_unet(sample_size=4, num_class_embeds=4).eval()
    names = {0: "zero", 1: "one", 2: "two"}
    DiffusionBridgeVQPipeline(vqvae, unet, OUBridgeScheduler(**BRIDGE), names, **settings).save_pretrained(folder)
    return folder


def draw(teacher, folder, **changes):
    pipe = DiffusionBridgeVQPipeline.from_pretrained(teacher)
    options = {"num_trajectories": 600, "num_inference_steps": 6, "guidance_scale": 2.0, "precision": "float32"}
    options["batch_size"] = 512
    options["class_names"] = list(pipe.id2label.values())
    return draw_trajectories(folder=folder, accelerator=Accelerator(cpu=True), **pipe.components | options | changes)


def config(folder, teacher, trajectories, **changes):
    settings = SETTINGS | {"batch_size": 100, "init_from": teacher, "trajectories": trajectories}
    return DistillConfig.from_preset("digits", output_dir=folder, **settings | changes)
