"""
What README and docs tell people to run: Python blocks and commands run as written, page by page, with fewer training
steps and narrower networks, also in the shipped checkpoints' places (tests/test_checkpoints.py loads these). A block
after a line `<!-- not run: REASON -->` is left out. Reports are records of runs that take hours.
"""

import dataclasses
import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, PartialState
from diffusers import UNet2DModel
from narrow_networks import narrow
from PIL import Image

from diffusion_bridge_vq import GumbelVQModel, training

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if "reports" not in p.parts)])
BLOCK = re.compile(r"(?:^<!-- (?P<mark>.*?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# Lines that set up an environment: `make demo` and .ci/run do the same.
SETUP = ("#", "python3 -m venv", "pip install", "export ", "source ")


def runnable(page: Path) -> list[tuple[str, str]]:
    """Kind and text of the blocks that run."""
    found = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["mark"] is not None:
            assert re.match(r"not run: \w+", block["mark"]), f"{page.name}: {block['mark']!r} gives no reason"
        elif block["kind"] in ("python", "bash"):
            found.append((block["kind"], block["text"]))
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a bash block, without those that set up an environment."""
    lines = text.replace("\\\n", " ").splitlines()
    assert not any(line.startswith(("for ", "while ", "if ")) for line in lines), f"a loop isn't run: mark it: {text}"
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith(SETUP)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """The folder of shipped checkpoints, with untrained narrow networks."""
    folder = tmp_path_factory.mktemp("narrow") / "checkpoints"
    shutil.copytree(ROOT / "checkpoints", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("digits", "cifar10", "cifar10-small", "emoji-words"):
        for part, cls in (("unet", UNet2DModel), ("vqvae", GumbelVQModel)):
            place = folder / name / part
            cls.from_config(narrow(cls.load_config(place))).save_pretrained(place)
    return folder


@pytest.fixture
def clone(tmp_path, monkeypatch, checkpoints) -> Path:
    """A folder with what commands name: the repository's folders, and images at the paths of the docs."""
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for label in ("cats", "dogs"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(0, 256, (36, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "path" / "to").mkdir(parents=True)
    for name in ("photos", "path/to/photos", "path/to/images", "path/to/cifar10"):
        (tmp_path / name).symlink_to(tmp_path / "images")
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python SCRIPT ...` in this process, which has imported everything already."""
    program, script, *arguments = words
    assert program == "python", f"only `python SCRIPT` is run, got {shlex.join(words)}"
    assert Path(script).is_file(), f"there is no {script}"
    monkeypatch.setattr("sys.argv", [script, *arguments])
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    runpy.run_path(script, run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_run(page, clone, monkeypatch):
    train = training.train

    def train_shortly(config, *arguments):
        short = {"max_train_steps": 2, "max_train_time": None, "batch_size": 4, "num_inference_steps": 2}
        short |= {name: narrow(getattr(config, name)) for name in ("vqvae", "unet", "prior") if hasattr(config, name)}
        return train(dataclasses.replace(config, **short, image_every=0, log_every=1, report_to="none"), *arguments)

    monkeypatch.setattr(training, "train", train_shortly, raising=False)
    names: dict = {}
    for kind, text in runnable(page):
        if kind == "python":
            exec(compile(text, str(page), "exec"), names)
            continue
        for words in commands(text):
            run_command(words, monkeypatch)


@pytest.mark.parametrize("page", [ROOT / "README.md", *ROOT.glob("checkpoints/*/README.md")])
def test_links_lead_somewhere(page):
    """mkdocs checks those of the site."""
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
