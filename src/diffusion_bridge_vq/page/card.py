"""The model card, as a page."""

import re
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><link rel="stylesheet" href="page/page.css"></head>
<body class="card"><main><p><a href="./">Back to the pictures</a></p>
{body}
</main></body></html>
"""


def is_on_hub(source: str) -> bool:
    return not Path(source).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def card_folder(source: str) -> Path | None:
    """The folder with the card of a local model: its own, or that of the run that it is the pipeline of."""
    folder = Path(source)
    for place in (folder, folder.parent) if folder.name == "pipeline" else (folder,):
        if (place / "README.md").is_file():
            return place
    return None


def card_html(name: str, text: str) -> str:
    """Markdown -> a page. Raw HTML in it is shown as text, and the YAML in front is left out."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for element in ("pre", "table"):  # wide ones are scrolled, by keyboard too
        body = body.replace(f"<{element}>", f'<{element} tabindex="0">')
    return PAGE.format(title=f"Model card: {escape(name)}", body=body)
