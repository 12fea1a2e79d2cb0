"""Blocks of modular pipelines from the files that are pushed, with the code that they carry."""

import diffusers
import pytest
import torch
from diffusers import ClassifierFreeGuidance, DiffusionPipeline, ModularPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks
from packaging.version import Version
from pipeline_files import write_folder
from tiny_models import SKEWED, make_code_pipeline, make_pipeline, make_words_pipeline, rng

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.hub import code, push_run
from diffusion_bridge_vq.hub.push import pipeline_files
from diffusion_bridge_vq.model_card import read_run

pytestmark = [
    pytest.mark.skipif(Version(diffusers.__version__) < Version("0.42"), reason="reads blocks in another way"),
    pytest.mark.usefixtures("own_modules"),
]
CALL = {"batch_size": 2, "num_inference_steps": 3}


def push_to_folder(pipe, folder) -> str:
    """The files that a push would upload, in a folder."""
    pipe.save_pretrained(folder / "saved")
    files = pipeline_files(read_run(folder / "saved"), "user/model")
    found = {path: content if isinstance(content, bytes) else content.read_bytes() for path, content in files.items()}
    return str(write_folder(folder / "pushed", found))


def drawn(modular, **call) -> torch.Tensor:
    return modular(**CALL, generator=rng(), output_type="pt", output="images", **call)


def test_blocks_and_components_of_a_folder(tmp_path):
    """None of the classes is the package's, and they draw the package's images; guiders and parts work, too."""
    pipe = make_pipeline(4, size=4, **SKEWED)
    folder = push_to_folder(pipe, tmp_path)
    blocks = ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)
    modular = blocks.init_pipeline(folder)
    modular.load_components()
    assert type(modular.vqvae).__name__ == "GumbelVQModel" and not isinstance(modular.vqvae, GumbelVQModel)
    assert type(modular.scheduler).__name__ == "OUBridgeScheduler"
    assert not isinstance(modular.scheduler, OUBridgeScheduler)
    assert torch.equal(drawn(modular), pipe(**CALL, generator=rng(), output_type="pt").images)
    modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    expected = pipe(**CALL, generator=rng(), output_type="pt", class_labels=[0, 2], guidance_scale=3.0).images
    torch.testing.assert_close(drawn(modular, class_labels=[0, 2]), expected, rtol=1e-4, atol=1e-5)
    whole = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
    whole.load_components()
    assert torch.equal(drawn(whole), drawn(modular))


def test_code_of_several_folders(tmp_path, monkeypatch):
    """The same code is the same classes, also for the pipeline; other code, loaded between, changes nothing."""
    pipe = make_pipeline(size=4, **SKEWED)
    first, again = (push_to_folder(pipe, tmp_path / name) for name in ("first", "again"))
    # Python takes two files of one name, size and second for the same, and diffusers gives both that name
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    one_file = code.one_file
    with monkeypatch.context() as patch:
        patch.setattr(code, "one_file", lambda cls: f"{one_file(cls)}\nOTHER = True\n")
        other = push_to_folder(pipe, tmp_path / "other")
    loaded = {
        folder: ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True).init_pipeline(folder)
        for folder in (first, other, again)
    }
    expected = pipe(**CALL, generator=rng(), output_type="pt").images
    for modular in loaded.values():  # all blocks were loaded before the components of any
        modular.load_components()
        assert torch.equal(drawn(modular), expected)
    stock = DiffusionPipeline.from_pretrained(first, custom_pipeline=f"{first}/pipeline.py", trust_remote_code=True)
    stock.set_progress_bar_config(disable=True)
    classes = {folder: (type(modular.vqvae), type(modular.scheduler)) for folder, modular in loaded.items()}
    assert classes[first] == classes[again] == (type(stock.vqvae), type(stock.scheduler))
    assert not set(classes[first]) & set(classes[other])
    loaded[again].update_components(vqvae=stock.vqvae, scheduler=loaded[first].scheduler, unet=stock.unet)
    assert torch.equal(drawn(loaded[again]), expected) and torch.equal(drawn(loaded[other]), expected)
    assert torch.equal(stock(**CALL, generator=rng(), output_type="pt").images, expected)


def test_a_network_that_gives_codes_probabilities(tmp_path):
    pipe = make_code_pipeline()
    pipe.set_progress_bar_config(disable=True)
    modular = ModularPipeline.from_pretrained(push_to_folder(pipe, tmp_path), trust_remote_code=True)
    modular.load_components()
    assert type(modular.unet).__name__ == "CodeUNet2DModel"
    assert torch.equal(drawn(modular), pipe(**CALL, generator=rng(), output_type="pt").images)


@pytest.mark.usefixtures("hub", "cache", "logged_in")
def test_from_the_hub(tmp_path):
    pipe = make_pipeline(size=4, **SKEWED)
    pipe.save_pretrained(tmp_path)
    push_run(tmp_path, "tester/blocks")
    blocks = ModularPipelineBlocks.from_pretrained("tester/blocks", trust_remote_code=True)
    modular = blocks.init_pipeline("tester/blocks")
    modular.load_components()
    assert torch.equal(drawn(modular), pipe(**CALL, generator=rng(), output_type="pt").images)


@pytest.mark.usefixtures("hub", "cache", "logged_in")
def test_a_model_of_words_from_the_hub(tmp_path):
    """diffusers takes a list in model_index.json for a component, and looks for its code."""
    pipe = make_words_pipeline(["Red cat", "blue dog"])
    pipe.save_pretrained(tmp_path)
    push_run(tmp_path, "tester/words")
    stock = DiffusionPipeline.from_pretrained("tester/words", custom_pipeline="pipeline", trust_remote_code=True)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is not type(pipe) and stock.label_examples == ["Red cat", "blue dog"]
    call = {"class_labels": stock.label_examples, "num_inference_steps": 3, "output_type": "pt"}
    assert torch.equal(stock(**call, generator=rng()).images, pipe(**call, generator=rng()).images)
    blocks = ModularPipelineBlocks.from_pretrained("tester/words", trust_remote_code=True)
    assert set(blocks.init_pipeline("tester/words").pretrained_component_names) == {"vqvae", "unet", "scheduler"}


def test_code_is_not_run_unasked(tmp_path):
    folder = push_to_folder(make_pipeline(size=4), tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipelineBlocks.from_pretrained(folder)


def test_a_pixelcnn_has_no_blocks(tmp_path):
    prior = PixelCNNPrior(num_codes=32, width=8, num_layers=2, kernel_size=3, sample_size=3)
    PixelCNNVQPipeline(make_pipeline().vqvae, prior.eval()).save_pretrained(tmp_path)
    files = pipeline_files(read_run(tmp_path), "user/model")
    assert "pipeline.py" in files and not {"block.py", "modular_config.json", "modular_model_index.json"} & set(files)
