"""Encodings that are pushed, and read from the Hub."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from huggingface_hub import HfApi

import diffusion_bridge_vq.data.encoded as encoded_module
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.hub import PushOptions, push_encoded


def test_a_folder_is_pushed_with_a_card_and_without_local_names(copy, tmp_path, monkeypatch):
    """To a stand-in that keeps the files; what comes back is trained on."""
    text = (copy / "encoding.json").read_text().replace('"name": "digits"', '"name": "my-secret-project"')
    (copy / "encoding.json").write_text(text)
    pushed, back = [], tmp_path / "back"

    def commit(self, repo_id, operations, **options):
        pushed.append((repo_id, options["repo_type"]))
        for operation in operations:
            path = back / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            content = operation.path_or_fileobj
            path.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())

    repositories = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, name, **o: repositories.append(o) or SimpleNamespace(repo_id=name)
    )
    monkeypatch.setattr(HfApi, "create_commit", commit)
    push_encoded(copy, PushOptions("user/latents", license="mit"))
    assert pushed == [("user/latents", "dataset")] and repositories[0]["private"]
    whole, found = EncodedImages(copy), EncodedImages(back)
    assert torch.equal(found.__getitems__([0, 5])["latents"], whole.__getitems__([0, 5])["latents"])
    assert found.fingerprint == whole.fingerprint
    card = (back / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nconfigs:") and "--latents user/latents" in card
    assert f"{whole.num_rows} rows of latents" in card
    assert not any(b"secret" in path.read_bytes() for path in back.rglob("*") if path.is_file())
    assert datasets.load_dataset(str(back), split="train").num_rows == whole.num_rows


def test_latents_come_from_the_hub_where_there_is_no_such_folder(copy, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(copy)
    )
    monkeypatch.chdir(tmp_path)
    assert encoded_module.find_encoded(Path("user/latents")) == copy
    assert asked[0][0] == "user/latents" and asked[0][1]["repo_type"] == "dataset"
    (tmp_path / "user" / "latents").mkdir(parents=True)
    assert encoded_module.find_encoded(Path("user/latents")) == Path("user/latents") and len(asked) == 1
    (tmp_path / "user" / "latents" / "encoding.json").touch()
    with pytest.raises(ValueError, match=r"'user/latnets' holds no encoded images.* Did you mean 'user/latents'\?"):
        EncodedImages(encoded_module.find_encoded(Path("user/latnets")))
    assert len(asked) == 1
