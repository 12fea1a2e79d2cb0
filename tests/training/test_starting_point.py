"""Runs that go on from a pipeline (`init_from`), or from its autoencoder alone (`vqvae_from`)."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_models import make_autoencoder
from tiny_run import SETTINGS, TINY

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel, OUBridgeScheduler
from diffusion_bridge_vq.models import CodeUNet2DModel
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, build_objective, train
from diffusion_bridge_vq.training.checkpoint_components import load_components
from diffusion_bridge_vq.training.presets import preset_values
from diffusion_bridge_vq.training.starting_point import load_autoencoder

BRIDGES = pytest.mark.parametrize("cls", [PriorConfig, E2EConfig])
NAMES = ["cat", "dog", "fox"]


def config(cls, folder: Path, **options):
    """Without arguments of components, which are those of what is loaded."""
    settings = {name: value for name, value in SETTINGS.items() if name != "lr_warmup_steps"}
    return cls.from_preset("digits", output_dir=folder, **settings | options)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Saved, of three classes, with a process of its own."""
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    run = E2EConfig.from_preset("digits", resolution=8, class_conditional=True, **TINY)
    made = build_objective(run, 3)
    scheduler = OUBridgeScheduler(eta=0.5, beta_schedule="squaredcos_cap_v2", lambda_max_clipped=3.0)
    pipe = DiffusionBridgeVQPipeline(made.vqvae, made.unet, scheduler, dict(enumerate(NAMES)))
    pipe.save_pretrained(folder)
    return folder


def predict(unet, label: int | None) -> torch.Tensor:
    labels = None if label is None else torch.full((2,), label)
    with torch.no_grad():
        return unet.eval()(torch.ones(2, 4, 4, 4), torch.tensor([3, 700]), class_labels=labels).sample


@BRIDGES
def test_the_u_net_goes_on_with_its_process(cls, pipeline, tmp_path):
    """At step 0 it predicts what it did, for all classes; nothing comes from the preset, whose networks are larger."""
    saved = DiffusionBridgeVQPipeline.from_pretrained(pipeline)
    objective = build_objective(config(cls, tmp_path, init_from=pipeline, class_conditional=True), 3, NAMES)
    for label in range(4):
        assert torch.equal(predict(objective.unet, label), predict(saved.unet, label))
    assert objective.scheduler.config == saved.scheduler.config
    assert objective.start == f"The U-Net in {pipeline} goes on."
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(objective.vqvae.eval().encode(images).latents, saved.vqvae.encode(images).latents)


@BRIDGES
def test_the_autoencoder_alone_with_a_fresh_u_net(cls, pipeline, tmp_path):
    run = config(cls, tmp_path, vqvae_from=pipeline, unet=TINY["unet"])
    objective = build_objective(run)
    assert objective.start == "" and objective.unet.config.num_class_embeds is None
    assert objective.scheduler.config.eta == preset_values("digits", cls.kind)["scheduler"]["eta"]
    assert run.learning_rate == preset_values("digits", cls.kind)["learning_rate"]
    saved = GumbelVQModel.from_pretrained(pipeline, subfolder="vqvae")
    assert torch.equal(objective.vqvae.encoder.conv_in.weight, saved.encoder.conv_in.weight)


def test_other_classes_keep_the_rows_of_known_names(pipeline, tmp_path):
    saved = DiffusionBridgeVQPipeline.from_pretrained(pipeline).unet
    run = config(PriorConfig, tmp_path, init_from=pipeline, class_conditional=True)
    objective = build_objective(run, 2, ["horse", "cat"])
    for new, old in ((1, 0), (2, 3)):  # cat and the null class
        assert torch.equal(predict(objective.unet, new), predict(saved, old))
    assert objective.start.endswith("Classes kept: cat; new, with fresh rows: horse; dropped: dog, fox.")


@BRIDGES
def test_from_classes_to_none_and_back(cls, pipeline, tmp_path):
    before = predict(DiffusionBridgeVQPipeline.from_pretrained(pipeline).unet, 3)
    without = build_objective(config(cls, tmp_path, init_from=pipeline))
    torch.testing.assert_close(predict(without.unet, None), before)
    assert "loses its 3 classes" in without.start
    DiffusionBridgeVQPipeline(without.vqvae, without.unet, without.scheduler).save_pretrained(tmp_path / "pipeline")
    back = build_objective(config(cls, tmp_path, init_from=tmp_path, class_conditional=True), 2, ["a", "b"])
    torch.testing.assert_close(predict(back.unet, 2), before)
    assert "gets 2 classes" in back.start


@BRIDGES
def test_another_resolution_of_the_same_latents(cls, pipeline, tmp_path):
    objective = build_objective(config(cls, tmp_path, init_from=pipeline, resolution=16))
    assert (objective.vqvae.config.sample_size, objective.unet.config.sample_size) == (16, 8)


@BRIDGES
def test_lower_learning_rate_and_shorter_warm_up_unless_given(cls, pipeline, tmp_path):
    preset = preset_values("digits", cls.kind)
    run = config(cls, tmp_path, init_from=pipeline)
    assert run.learning_rate == pytest.approx(preset["learning_rate"] / 2)
    assert run.lr_warmup_steps == preset["lr_warmup_steps"] // 5
    given = config(cls, tmp_path, init_from=pipeline, learning_rate=0.5, lr_warmup_steps=7)
    assert (given.learning_rate, given.lr_warmup_steps) == (0.5, 7)


@BRIDGES
@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"unet": {"dropout": 0.5}},
            "keeps its settings, but `unet` asks for dropout 0.5 instead of 0.0",
        ),
        ({"vqvae": {"num_vq_embeddings": 9}}, "num_vq_embeddings 9 instead of 8"),
        ({"scheduler": {"prediction_type": "sample"}}, "prediction_type 'sample' instead of 'epsilon'"),
        ({"scheduler": {"eta": 2.0}}, "eta 2.0 instead of 0.5"),
        ({"vqvae_from": "somewhere"}, "give either it or `vqvae_from`"),
    ],
)
def test_settings_that_differ_are_refused(cls, options, words, pipeline, tmp_path):
    with pytest.raises(ValueError, match=words):
        build_objective(config(cls, tmp_path, init_from=pipeline, **options))


def test_settings_of_sampling_are_free(pipeline, tmp_path):
    asked = {"timestep_spacing": "trailing", "lambda_max_clipped": 2.0}
    made = build_objective(config(PriorConfig, tmp_path, init_from=pipeline, scheduler=asked)).scheduler.config
    assert (made.timestep_spacing, made.lambda_max_clipped, made.eta) == ("trailing", 2.0, 0.5)


def with_scheduler(pipeline: Path, folder: Path, scheduler) -> Path:
    for name in ("vqvae", "unet"):
        (folder / name).symlink_to(pipeline / name)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize("own", [True, False])
def test_a_scheduler_of_diffusers_becomes_a_bridge(own, pipeline, tmp_path):
    """One made of a bridge, and one that DDPM was trained with: the same noise levels, step for step."""
    stock = DDPMScheduler(beta_end=0.05, clip_sample=False)
    if own:
        stock = DiffusionBridgeVQPipeline.from_pretrained(pipeline).scheduler.to_diffusers(DDIMScheduler)
    start = with_scheduler(pipeline, tmp_path, stock)
    bridge = build_objective(config(PriorConfig, tmp_path / "run", init_from=start)).scheduler
    z, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    seen = bridge.scale_model_input(bridge.add_noise(z, noise, t), t)
    torch.testing.assert_close(seen, stock.add_noise(z, noise, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler, words",
    [
        (FlowMatchEulerDiscreteScheduler(), "is a FlowMatchEulerDiscreteScheduler, whose process isn't that of a bri"),
        (DDIMScheduler(rescale_betas_zero_snr=True), "noise levels that its betas don't give"),
    ],
)
def test_other_processes_are_refused(scheduler, words, pipeline, tmp_path):
    start = with_scheduler(pipeline, tmp_path, scheduler)
    with pytest.raises(ValueError, match=words):
        build_objective(config(PriorConfig, tmp_path / "run", init_from=start))


def test_a_repository_of_the_hub_would_lose_its_u_net(tmp_path):
    with pytest.raises(ValueError, match="hf download user/model --local-dir FOLDER"):
        build_objective(config(PriorConfig, tmp_path, init_from=Path("user/model")))


def test_a_u_net_for_other_latents_is_refused(pipeline, tmp_path):
    vqvae = GumbelVQModel(**TINY["vqvae"] | {"latent_channels": 5, "in_channels": 1, "out_channels": 1})
    vqvae.save_pretrained(tmp_path / "vqvae")
    (tmp_path / "unet").symlink_to(pipeline / "unet")
    with pytest.raises(ValueError, match="goes from 4 to 4 channels, but the codes of the autoencoder have 5"):
        build_objective(config(PriorConfig, tmp_path / "run", init_from=tmp_path))


@pytest.fixture
def code_unet(tmp_path) -> CodeUNet2DModel:
    """Of a pipeline in `tmp_path`."""
    made = build_objective(E2EConfig.from_preset("digits", resolution=8, **TINY))
    options = {"vqvae_from": tmp_path, "unet": TINY["unet"], "code_posterior": True}
    made.vqvae.save_pretrained(tmp_path / "vqvae")
    codes = build_objective(config(PriorConfig, tmp_path, **options))
    DiffusionBridgeVQPipeline(made.vqvae, codes.unet, codes.scheduler).save_pretrained(tmp_path / "pipeline")
    return codes.unet


def test_a_network_that_knows_the_codes_goes_on_without_being_asked_for(code_unet, tmp_path):
    unet = build_objective(config(PriorConfig, tmp_path, init_from=tmp_path)).unet
    assert type(unet) is CodeUNet2DModel and torch.equal(predict(unet, None), predict(code_unet, None))


def test_a_network_that_knows_the_codes_takes_no_condition(code_unet, tmp_path):
    run = config(PriorConfig, tmp_path, init_from=tmp_path, condition="low-resolution:4")
    with pytest.raises(ValueError, match="is a CodeUNet2DModel, which takes no `condition`: start from the auto"):
        build_objective(run)


def test_a_stock_u_net_does_not_become_one(pipeline, tmp_path):
    with pytest.raises(ValueError, match="is a UNet2DModel, but `code_posterior` asks for a CodeUNet2DModel"):
        build_objective(config(PriorConfig, tmp_path, init_from=pipeline, code_posterior=True))


def test_other_kinds_take_the_autoencoder(pipeline, tmp_path):
    for cls, own in ((VQConfig, {}), (PixelCNNConfig, {"prior": {"width": 8, "num_layers": 2}})):
        run = config(cls, tmp_path, init_from=pipeline, **own)
        assert run.learning_rate == preset_values("digits", cls.kind)["learning_rate"]
        assert build_objective(run).vqvae.config.num_vq_embeddings == 8


def test_a_whole_run_and_its_checkpoint(pipeline, tmp_path, capsys):
    """What it starts from is printed, and a checkpoint is read with the classes of the run."""
    options = {"init_from": pipeline, "class_conditional": True, "checkpoint_every": 2, "max_train_steps": 2}
    run = config(PriorConfig, tmp_path, learning_rate=1e-20, ema_decay=0.0, **options)
    trained = train(run)
    said = capsys.readouterr().out
    assert "Classes new, with fresh rows: 0, 1, 2, 3, 4, 5 and 4 more; dropped: cat, dog, fox." in said
    assert "learning rate 1e-20, cosine, 10 steps of warm-up" in said
    null = predict(DiffusionBridgeVQPipeline.from_pretrained(pipeline).unet, 3)
    torch.testing.assert_close(predict(trained["unet"], 10), null)
    assert json.loads(RunFolder(tmp_path).config.read_text())["unet"] == {}
    components, _ = load_components(tmp_path)
    assert torch.equal(predict(components["unet"], 7), predict(trained["unet"], 7))


def test_a_run_that_is_not_over_is_named(tmp_path):
    step = tmp_path / "checkpoints" / "step-00000004"
    step.mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    for place in (tmp_path, step):
        with pytest.raises(
            ValueError, match=rf"The run in {tmp_path} isn't over: .*export_checkpoint.py {place} --out"
        ):
            load_autoencoder(place)


def test_an_autoencoder_by_itself_in_a_folder_called_checkpoints(tmp_path):
    """A run's checkpoints are in a folder of that name, too."""
    place = tmp_path / "checkpoints" / "emoji"
    make_autoencoder().save_pretrained(place)
    assert load_autoencoder(place).config == GumbelVQModel.from_pretrained(place).config
    run = RunFolder(tmp_path)
    run.write_config({"preset": "digits"})
    run.checkpoint(4).mkdir()
    for unfinished in (run.path, run.checkpoint(4)):
        with pytest.raises(ValueError, match=f"The run in {tmp_path} isn't over"):
            load_autoencoder(unfinished)
