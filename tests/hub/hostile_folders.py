"""
Folders of pipelines that must be refused, each made from a good one by one change.

test_hostile_folders.py tries them all in one process. `python tests/hub/hostile_folders.py` tries each in a process
of its own and prints the table of docs/reference/hostile-files.md: seconds and peak memory until the refusal.
"""

import json
import multiprocessing
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from pipeline_files import INDEX, WEIGHTS
from safetensors.torch import load_file, save_file
from tiny_models import BRIDGE, make_code_pipeline, make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNPrior, PixelCNNVQPipeline

Change = Callable[[Path], Any]
KINDS: dict[str, Any] = {
    "bridge": DiffusionBridgeVQPipeline,
    "code": DiffusionBridgeVQPipeline,
    "pixelcnn": PixelCNNVQPipeline,
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 92000\n"


def save_good_folders(folder: Path) -> None:
    """One good folder of each kind."""
    bridge = make_pipeline(num_train_timesteps=20, beta_start=0.01, beta_end=0.3)
    bridge.save_pretrained(folder / "bridge")
    make_code_pipeline().save_pretrained(folder / "code")
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3).eval()
    PixelCNNVQPipeline(bridge.vqvae, prior).save_pretrained(folder / "pixelcnn")


def edit(path: str, **changes: Any) -> Change:
    """Entries of a JSON file."""

    def change(folder: Path) -> None:
        (folder / path).write_text(json.dumps(json.loads((folder / path).read_text()) | changes))

    return change


def vqvae(**changes: Any) -> Change:
    return edit("vqvae/config.json", **changes)


def unet(**changes: Any) -> Change:
    return edit("unet/config.json", **changes)


def prior(**changes: Any) -> Change:
    return edit("prior/config.json", **changes)


def scheduler(**changes: Any) -> Change:
    return edit("scheduler/scheduler_config.json", **changes)


def stock_scheduler(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        edit(INDEX, scheduler=["diffusers", name])(folder)
        settings = {"_class_name": name, "_diffusers_version": "0.40.0", "timestep_spacing": "trailing"}
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps(settings | BRIDGE | changes))

    return change


def text(path: str, content: bytes) -> Change:
    return lambda folder: (folder / path).write_bytes(content)


def insert(path: str, content: str) -> Change:
    """Put text before the end of a JSON object."""

    def change(folder: Path) -> None:
        kept = (folder / path).read_text().rstrip().removesuffix("}").rstrip()
        (folder / path).write_text(f"{kept},\n{content}\n}}")

    return change


def special(path: str, make: Callable[[Path], Any]) -> Change:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / path).unlink()
        make(folder / path)

    return change


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def tensor(part: str, name: str, value: float) -> Change:
    """One number of a saved tensor."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / part / WEIGHTS)
        tensors[name].view(-1)[0] = value
        save_file(tensors, folder / part / WEIGHTS)

    return change


def header(entries: dict[str, Any] | bytes, size: int = 0) -> Change:
    """A weight file of the U-Net with this header and `size` bytes of tensors."""
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return text(f"unet/{WEIGHTS}", len(content).to_bytes(8, "little") + content + bytes(size))


def empty_tensors(count: int) -> Change:
    def change(folder: Path) -> None:
        entries = b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count))
        header(b"{" + entries + b"}")(folder)

    return change


def integer_weights(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    tensors["conv_in.bias"] = tensors["conv_in.bias"].long()
    save_file(tensors, folder / "unet" / WEIGHTS)


def shards(change: Callable[[Path, dict[str, str]], Any]) -> Change:
    """The U-Net in two shards with an index, changed."""

    def split(folder: Path) -> None:
        part = folder / "unet"
        tensors = load_file(part / WEIGHTS)
        names = sorted(tensors)
        placed = {}
        for number, own in enumerate((names[::2], names[1::2]), start=1):
            file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
            save_file({name: tensors[name] for name in own}, part / file)
            placed |= dict.fromkeys(own, file)
        (part / WEIGHTS).unlink()
        change(part, placed)
        index = {"metadata": {"total_size": 1}, "weight_map": placed}
        (part / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return split


def shard_as_fifo(part: Path, placed: dict[str, str]) -> None:
    path = part / placed["conv_in.bias"]
    path.unlink()
    os.mkfifo(path)


def many_levels(part: str, count: int = 20_000) -> Change:
    down, up = ("DownEncoderBlock2D", "UpDecoderBlock2D") if part == "vqvae" else ("DownBlock2D", "UpBlock2D")
    levels = {"block_out_channels": [8] * count, "down_block_types": [down] * count, "up_block_types": [up] * count}
    return edit(f"{part}/config.json", **levels)


BELONGS = "don't belong together"
# name -> kind of the folder, change, message
CASES: dict[str, tuple[str, Change, str]] = {
    # configurations of models that are far too large
    "num_vq_embeddings 4e8": ("bridge", vqvae(num_vq_embeddings=400_000_000), BELONGS),
    "vqvae layers_per_block 1e6": ("bridge", vqvae(layers_per_block=10**6), BELONGS),
    "unet layers_per_block 1e6": ("bridge", unet(layers_per_block=10**6), BELONGS),
    "vqvae of 20,000 levels": ("bridge", many_levels("vqvae"), BELONGS),
    "unet of 20,000 levels": ("bridge", many_levels("unet"), BELONGS),
    "block_out_channels 2^40": ("bridge", unet(block_out_channels=[2**40, 2**40]), BELONGS),
    "num_class_embeds 1e9": ("bridge", unet(num_class_embeds=10**9), BELONGS),
    "time_embedding_dim 1e9": ("bridge", unet(time_embedding_dim=10**9), BELONGS),
    "learned embedding of 1e9 timesteps": (
        "bridge",
        unet(time_embedding_type="learned", num_train_timesteps=10**9),
        BELONGS,
    ),
    "num_noise_levels 1e9": ("code", unet(num_noise_levels=10**9), BELONGS),
    "num_codes 1e9": ("code", unet(num_codes=10**9), BELONGS),
    "pixelcnn num_layers 1e6": ("pixelcnn", prior(num_layers=10**6), BELONGS),
    "pixelcnn num_layers 1e12": ("pixelcnn", prior(num_layers=10**12), BELONGS),
    "pixelcnn width 1e6": ("pixelcnn", prior(width=10**6), BELONGS),
    "pixelcnn kernel_size 1e9 + 1": ("pixelcnn", prior(kernel_size=10**9 + 1), "can't be loaded|" + BELONGS),
    # what has no weights
    "num_train_timesteps 1e8": ("bridge", scheduler(num_train_timesteps=10**8), "at most 100000, got 100000000"),
    "DDIMScheduler, num_train_timesteps 1e8": (
        "bridge",
        stock_scheduler("DDIMScheduler", num_train_timesteps=10**8),
        "at most 100000, got 100000000",
    ),
    "DPMSolverMultistepScheduler, solver_order 1e9": (
        "bridge",
        stock_scheduler("DPMSolverMultistepScheduler", solver_order=10**9),
        "1000000000 for 'solver_order'",
    ),
    "unet sample_size 1e9": ("bridge", unet(sample_size=10**9), "`sample_size` of UNet2DModel must be"),
    "vqvae sample_size 1e9": ("bridge", vqvae(sample_size=10**9), "`sample_size` of GumbelVQModel must be"),
    "pixelcnn sample_size 1e9": ("pixelcnn", prior(sample_size=10**9), "`sample_size` of PixelCNNPrior must be"),
    # configurations that would fail later, or never
    "sample_size -1": ("bridge", unet(sample_size=-1), "`sample_size` of UNet2DModel must be .* got -1"),
    "sample_size '64'": ("bridge", unet(sample_size="64"), "`sample_size` of UNet2DModel must be .* got '64'"),
    "vqvae sample_size true": ("bridge", vqvae(sample_size=True), "`sample_size` of GumbelVQModel .* got True"),
    "sample_size of three sides": ("bridge", unet(sample_size=[3, 3, 3]), "or a pair of them"),
    "num_vq_embeddings 0": ("bridge", vqvae(num_vq_embeddings=0), "`num_vq_embeddings` of GumbelVQModel must be"),
    "num_vq_embeddings 32.0": ("bridge", vqvae(num_vq_embeddings=32.0), "an integer of at least 1, got 32.0"),
    "no levels": ("bridge", vqvae(block_out_channels=[]), "a list, not empty"),
    "levels of other lengths": ("bridge", unet(block_out_channels=[8]), "lists of the same length"),
    "attention_head_dim 0": ("bridge", unet(attention_head_dim=0), "`attention_head_dim` of UNet2DModel must be"),
    "norm_num_groups 0": ("bridge", unet(norm_num_groups=0), "`norm_num_groups` of UNet2DModel must be"),
    "vqvae norm_num_groups 0": ("bridge", vqvae(norm_num_groups=0), "`norm_num_groups` of GumbelVQModel must be"),
    "freq_shift of half the width": ("bridge", unet(freq_shift=4), "`freq_shift` of UNet2DModel must be below half"),
    "mid_block_scale_factor 0": ("bridge", unet(mid_block_scale_factor=0), "`mid_block_scale_factor`"),
    "norm_eps -1": ("bridge", unet(norm_eps=-1.0), "`norm_eps` of UNet2DModel must be"),
    "downsample_padding 1e9": ("bridge", unet(downsample_padding=10**9), "`downsample_padding`"),
    "unknown time_embedding_type": ("bridge", unet(time_embedding_type="x"), "one of positional, fourier, learned"),
    "dropout NaN": ("bridge", unet(dropout=float("nan")), "has NaN for 'dropout'"),
    "dropout 1": ("bridge", unet(dropout=1.0), "`dropout` of UNet2DModel must be"),
    "temperature NaN": ("bridge", vqvae(temperature=float("nan")), "has NaN for 'temperature'"),
    "temperature infinite": ("bridge", vqvae(temperature=float("inf")), "`temperature` of GumbelSoftmaxQuantizer"),
    "beta_start NaN": ("bridge", scheduler(beta_start=float("nan")), "has NaN for 'beta_start'"),
    "num_train_timesteps true": (
        "bridge",
        scheduler(num_train_timesteps=True),
        "an integer of at least 1 .* got True",
    ),
    "num_train_timesteps 20.5": (
        "bridge",
        scheduler(num_train_timesteps=20.5),
        "an integer of at least 1 .* got 20.5",
    ),
    "DDIMScheduler, num_train_timesteps '20'": (
        "bridge",
        stock_scheduler("DDIMScheduler", num_train_timesteps="20"),
        "an integer of at least 1 .* got '20'",
    ),
    "nested z_star": ("bridge", scheduler(z_star=[[1]]), "`z_star`"),
    "z_star of two channels": ("bridge", scheduler(z_star=[0, 0]), "`z_star`"),
    "unet for other noise levels": (
        "code",
        scheduler(num_train_timesteps=19),
        "`num_noise_levels` 20, but the scheduler has 19",
    ),
    # JSON
    "key twice": ("bridge", insert("unet/config.json", '"sample_size": 5'), "the key 'sample_size' occurs twice"),
    "number of 5,000 digits": ("bridge", insert("unet/config.json", f'"x": {"9" * 5000}'), "isn't JSON"),
    "number of 4,000 digits": ("bridge", vqvae(layers_per_block=int("9" * 4000)), BELONGS),
    "number of 4,000 digits as float": (
        "bridge",
        vqvae(scaling_factor=int("9" * 4000)),
        "must be a finite number, got",
    ),
    "levels of 1e300": ("bridge", unet(layers_per_block=1e300), "`layers_per_block` of UNet2DModel must be"),
    "deep JSON": ("bridge", text("unet/config.json", b'{"a":' * 150_000), "isn't JSON"),
    "pointer of Git LFS as configuration": ("bridge", text("unet/config.json", LFS_POINTER), "pointer of Git LFS"),
    "FIFO as configuration": ("bridge", special("unet/config.json", os.mkfifo), "There is no file"),
    # weight files
    "FIFO as weights": ("bridge", special(f"unet/{WEIGHTS}", os.mkfifo), "isn't a regular file"),
    "socket as weights": ("bridge", special(f"unet/{WEIGHTS}", make_socket), "isn't a regular file"),
    "folder as weights": ("bridge", special(f"unet/{WEIGHTS}", os.mkdir), "isn't a regular file"),
    "link to nothing as weights": (
        "bridge",
        special(f"unet/{WEIGHTS}", lambda path: path.symlink_to("nowhere")),
        "isn't a regular file",
    ),
    "link to /dev/zero as weights": (
        "bridge",
        special(f"unet/{WEIGHTS}", lambda path: path.symlink_to("/dev/zero")),
        "isn't a regular file",
    ),
    "pointer of Git LFS as weights": ("bridge", text(f"unet/{WEIGHTS}", LFS_POINTER), "Run `git lfs pull`"),
    "no weights": ("bridge", special(f"unet/{WEIGHTS}", lambda path: None), "has no weights"),
    "header of 1,200,000 empty tensors": ("bridge", empty_tensors(1_200_000), "has a header of"),
    "header of 14,000 empty tensors": ("bridge", empty_tensors(14_000), "a model has at most 5,000"),
    "header of 4,000 empty tensors": ("bridge", empty_tensors(4_000), "aren't those of its configuration"),
    "deep header": ("bridge", header(b'{"a":' * 150_000), "cut off or damaged"),
    "name twice in the header": (
        "bridge",
        header(
            b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        ),
        "'a' occurs twice",
    ),
    "integer weights": ("bridge", integer_weights, "aren't floating point: conv_in.bias"),
    "layers_per_block 1e6 and a header of 4,000 empty tensors": (
        "bridge",
        lambda folder: [unet(layers_per_block=10**6)(folder), empty_tensors(4_000)(folder)],
        BELONGS,
    ),
    # shards
    "FIFO as shard": ("bridge", shards(shard_as_fifo), "isn't a regular file"),
    "index without a tensor": ("bridge", shards(lambda _, placed: placed.pop("conv_in.bias")), "doesn't fit"),
    "index with a tensor too many": (
        "bridge",
        shards(lambda _, placed: placed.update({"evil": placed["conv_in.bias"]})),
        "doesn't fit",
    ),
    "index with a list as shard": (
        "bridge",
        shards(lambda _, placed: placed.update({"conv_in.bias": ["a"]})),
        "doesn't name the shards",
    ),
    "shards without an index": (
        "bridge",
        lambda folder: [shards(lambda *_: None)(folder), (folder / f"unet/{WEIGHTS}.index.json").unlink()],
        "shards without an index",
    ),
    # values
    "NaN in the U-Net": (
        "bridge",
        tensor("unet", "conv_out.bias", float("nan")),
        "'conv_out.bias' are wrong.* is nan",
    ),
    "infinity in the U-Net": ("bridge", tensor("unet", "conv_out.bias", float("inf")), "the first is inf"),
    "NaN in the codebook": (
        "bridge",
        tensor("vqvae", "quantize.embedding.weight", float("nan")),
        r" 1 of the 96 values of its tensor 'quantize\.embedding\.weight'",
    ),
    "negative running variance": (
        "bridge",
        tensor("vqvae", "normalizer.running_var", -0.5),
        r"'normalizer\.running_var' are wrong, the first is -0\.5",
    ),
    "NaN in the U-Net's codebook": ("code", tensor("unet", "codebook", float("nan")), "'codebook' are wrong"),
    "NaN in the PixelCNN": ("pixelcnn", tensor("prior", "embedding.weight", float("nan")), "'embedding.weight' are"),
}


def make_hostile(good: Path, name: str, folder: Path) -> Path:
    """A folder of CASES."""
    kind, change, _ = CASES[name]
    shutil.copytree(good / kind, folder)
    change(folder)
    return folder


def measure(kind: str, folder: Path, results: Any) -> None:
    """Seconds and additional MB until the refusal."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        KINDS[kind].from_pretrained(folder)
        refusal = "NOT REFUSED"
    except ValueError as error:
        refusal = str(error).replace(str(folder), "FOLDER")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((time.perf_counter() - start, (peak - before) / 1024, refusal))


def main() -> None:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as temporary:
        good = Path(temporary) / "good"
        save_good_folders(good)
        print("| folder | seconds | MB | message |\n|---|---|---|---|")
        for name in sys.argv[1:] or CASES:
            folder = make_hostile(good, name, Path(temporary) / "hostile")
            results = context.Queue()
            process = context.Process(target=measure, args=(CASES[name][0], folder, results))
            process.start()
            process.join(60)
            if process.is_alive():
                process.kill()
                print(f"| {name} | over 60 | | |", flush=True)
            else:
                seconds, more, refusal = results.get()
                print(f"| {name} | {seconds:.1f} | {more:.0f} | {shorten(refusal, 100)} |", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
