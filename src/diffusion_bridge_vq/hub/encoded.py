"""Encoded data sets as repositories of the Hub."""

import dataclasses
import json
import shlex
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from ..data.encoded import EncodedImages
from ..data.encoded_shards import MANIFEST_NAME, Encoding
from ..privacy import UNNAMED_DATASET, public_dataset
from .push import PushOptions, until_it_works

_CARD = """---
{license}configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
tags:
- diffusion-bridge-vq
---

# {what} of {data}

{rows} rows of {what}, {shape} in {dtype}, by the encoder of a VQ autoencoder from images of {resolution} x
{resolution} pixels (split `{split}`){mirrored}. {labels}{condition} `key` names the image: part and number in it.

Written by `encode_dataset.py` of diffusion-bridge-vq {version}; `encoding.json` has the fingerprints of the
autoencoder (`{autoencoder}`) and of the images, and the normalizer of the latents. A prior is trained on it with the
same autoencoder:

```bash
python examples/{script} --init-from AUTOENCODER --latents {repo_id}{flag} --output-dir outputs/prior
```
"""

_CONDITION = " `condition` is an image to draw from, `{}`, {} x {} x {} in uint8."


def push_encoded(folder: Path, options: PushOptions, dataset_name: str | None = None, token: str | None = None) -> str:
    """
    Upload a folder of encoded images, with a card. No name of a local data set is in it.

    Args:
        folder (`Path`): what `encode_images` wrote, complete.
        options ([`PushOptions`]): where to, whether for all to see, and the license.
        dataset_name (`str`, *optional*): of the images; without it only one of the Hub is named.
        token (`str`, *optional*): that may write; defaults to the one of `hf auth login`.

    Returns:
        `str`: the address.

    Raises:
        ValueError: the folder isn't complete, or a shard is missing or damaged; not a repository's name.
        OSError: the Hub can't be reached, or refuses.
    """
    EncodedImages(folder, with_condition=True)  # is it whole?
    encoding = Encoding.read(folder)
    name = dataset_name or public_dataset(encoding.data["name"]) or UNNAMED_DATASET
    encoding = dataclasses.replace(encoding, data={**encoding.data, "name": name})
    files: dict[str, bytes | Path] = {
        f"data/{path.name}": path for path in sorted((folder / "data").glob("*.parquet"))
    }
    files[MANIFEST_NAME] = json.dumps(encoding.to_json(), indent=1).encode()
    files["README.md"] = make_card(encoding, options).encode()
    api = HfApi(token=token)

    def push() -> str:
        repo = api.create_repo(options.repo_id, repo_type="dataset", private=not options.public, exist_ok=True)
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        message = "Push images encoded by diffusion-bridge-vq"
        api.create_commit(repo.repo_id, operations, commit_message=message, repo_type="dataset")
        return str(repo)

    return until_it_works(push, options.repo_id)


def make_card(encoding: Encoding, options: PushOptions) -> str:
    """README.md of a repository."""
    return _CARD.format(
        license=f"license: {options.license}\n" if options.license else "",
        what=encoding.what,
        data=encoding.data["name"],
        rows=sum(encoding.rows or []),
        shape=" x ".join(map(str, encoding.shape or [])),
        dtype=encoding.dtype,
        resolution=encoding.data["resolution"],
        split=encoding.data["split"],
        mirrored=", each followed by that of its mirror image" if encoding.mirrored else "",
        labels="`label` is the class." if encoding.labels else "There are no labels.",
        condition=_CONDITION.format(encoding.condition, *encoding.condition_shape) if encoding.condition_shape else "",
        flag=f" --condition {shlex.quote(encoding.condition)}" if encoding.condition else "",
        version=encoding.version,
        autoencoder=encoding.autoencoder,
        script="train_pixelcnn.py" if encoding.what == "codes" else "train_prior.py",
        repo_id=options.repo_id,
    )
