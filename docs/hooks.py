"""MkDocs hook: the page of flags is made from the settings, so that it is always true."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from diffusion_bridge_vq.cli.training import describe_options
from diffusion_bridge_vq.training import DistillConfig, E2EConfig, PixelCNNConfig, PriorConfig, VQConfig

_KINDS = {
    "vqvae": VQConfig,
    "prior": PriorConfig,
    "pixelcnn": PixelCNNConfig,
    "e2e": E2EConfig,
    "distill": DistillConfig,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- flags KIND -->` by tables."""
    return re.sub(r"<!-- flags (\w+) -->", lambda match: _tables(match[1]), markdown)


def _tables(kind: str) -> str:
    lines = []
    for title, options in describe_options(_KINDS[kind]).items():
        if options:
            lines += [f"### {title.capitalize()}", "", "| flag | values | default | |", "|---|---|---|---|"]
            for flag, values, default, text in options:
                cells = (f"`{flag}`", values, f"`{default}`" if default else "", text)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            lines.append("")
    return "\n".join(lines)
