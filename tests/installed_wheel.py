"""Run by `make package` with the installed wheel, outside of the clone: python installed_wheel.py CHECKPOINT."""

import subprocess
import sys
from pathlib import Path

import diffusion_bridge_vq
from diffusion_bridge_vq import DiffusionBridgeVQPipeline

clone = Path(__file__).resolve().parents[1]
assert clone / "src" not in Path(diffusion_bridge_vq.__file__).parents, diffusion_bridge_vq.__file__
assert (Path(diffusion_bridge_vq.__file__).parent / "py.typed").is_file()
pipe = DiffusionBridgeVQPipeline.from_pretrained(sys.argv[1])
assert len(pipe(batch_size=2, num_inference_steps=2).images) == 2
subprocess.run([Path(sys.executable).with_name("dbvq"), "train-e2e", "--preset", "digits", "--dry-run"], check=True)
