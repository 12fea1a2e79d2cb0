"""MkDocs hooks: the page of flags is made from the settings, that of the notebook from the notebook."""

import json
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


_NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- flags KIND -->` by tables, and `<!-- notebook -->` by the cells of the notebook."""
    markdown = re.sub(r"<!-- flags (\w+) -->", lambda match: _tables(match[1]), markdown)
    return markdown.replace("<!-- notebook -->", _cells()) if "<!-- notebook -->" in markdown else markdown


def _cells() -> str:
    """All but the title, with what the cells printed and drew."""
    parts = []
    for cell in json.loads(_NOTEBOOK.read_text(encoding="utf-8"))["cells"][1:]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif (picture := output["data"].get("image/png")) is not None:
                encoded = "".join(picture).replace("\n", "")
                parts.append(f'<img alt="what this cell draws" src="data:image/png;base64,{encoded}">')
    return "\n\n".join(parts)


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
