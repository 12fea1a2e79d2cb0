"""`from_pretrained` refuses hostile folders, within a gigabyte and without waiting for ever."""

import re
import resource
import signal
from pathlib import Path

import pytest
from hostile_folders import CASES, KINDS, make_hostile, save_good_folders

from diffusion_bridge_vq import GumbelVQModel, PixelCNNPrior
from diffusion_bridge_vq.models import CodeUNet2DModel

GIGABYTE = 2**30


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    save_good_folders(folder)
    for kind, cls in KINDS.items():
        cls.from_pretrained(folder / kind)  # it is good, and all that loading imports is imported
    return folder


@pytest.fixture
def bounded():
    """A gigabyte more than now, and an error where a test waits for ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTE, hard))
    former = signal.signal(signal.SIGALRM, stop_waiting)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def stop_waiting(number, frame):
    raise TimeoutError("waited for two minutes")


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_is_refused(good, bounded, tmp_path, name):
    kind, _, message = CASES[name]
    folder = make_hostile(good, name, tmp_path / "folder")
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        KINDS[kind].from_pretrained(folder)


def test_the_page_of_the_docs_has_all_of_them():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "hostile-files.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.count("|") == 5]
    assert rows[0] == "folder" and rows[2:] == list(CASES)


MODELS = {"vqvae": GumbelVQModel, "unet": CodeUNet2DModel, "prior": PixelCNNPrior}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("num_vq_embeddings 4e8", "vqvae"),
        ("vqvae of 20,000 levels", "vqvae"),
        ("temperature infinite", "vqvae"),
        ("NaN in the codebook", "vqvae"),
        ("negative running variance", "vqvae"),
        ("num_noise_levels 1e9", "unet"),
        ("NaN in the U-Net's codebook", "unet"),
        ("pixelcnn num_layers 1e12", "prior"),
        ("NaN in the PixelCNN", "prior"),
    ],
)
def test_a_model_alone_is_refused(good, bounded, tmp_path, name, part):
    folder = make_hostile(good, name, tmp_path / "folder")
    for arguments, options in (((folder / part,), {}), ((folder,), {"subfolder": part})):
        with pytest.raises(ValueError, match=re.compile(CASES[name][2], re.DOTALL)):
            MODELS[part].from_pretrained(*arguments, **options)


def test_passed_components_are_checked(good):
    """Also those that someone else has built or trained."""
    cls = KINDS["bridge"]
    pipe = cls.from_pretrained(good / "bridge")
    pipe.unet.conv_out.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"unet can't be used: 1 of the 3 values of its tensor 'conv_out\.bias'"):
        cls.from_pretrained(good / "bridge", unet=pipe.unet)
    with pytest.raises(ValueError, match="unet can't be used"):
        cls(pipe.vqvae, pipe.unet, pipe.scheduler)
