"""A run as a repository of the Hub, in one commit."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from diffusers.utils import CONFIG_NAME, logging
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from .. import pipelines
from ..model_card import RunFiles, make_model_card, read_run
from ..pretrained import INDEX_NAME, find_weights, read_json
from ..privacy import redact
from .blocks import BLOCK_FILES
from .carried_code import CODE_PREFIX, PACKAGE_PREFIX
from .code import AUTO_MAP, carried_files

_ATTEMPTS = 5
_FIRST_WAIT = 2.0  # seconds, doubled each time
_RETRIED = (408, 409, 412, 429)  # another commit came first, or too many requests; and all of 500 and more
_OF_THIS_MACHINE = (FileNotFoundError, PermissionError, LocalTokenNotFoundError)  # the Hub isn't to blame

logger = logging.get_logger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class PushOptions:
    """
    Where a run goes: `repo_id` is "user/model"; `license` that of the weights; see [`push_run`] for the rest.

    Raises:
        ValueError: not a repository's name.
    """

    repo_id: str
    public: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"{self.repo_id!r} isn't a repository's name, 'user/model'.") from error


def push_run(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = True,
    license: str | None = None,
    evaluated_as: str | None = None,
    dataset_name: str | None = None,
    commit_message: str = "Push a run of diffusion-bridge-vq",
) -> str:
    """
    Upload a run (or a saved pipeline alone) in one commit: weights, card, newest grids, settings, metrics, evaluation,
    and code for people without the package. No path of this machine, name of a folder or token is in it; the names of
    the classes, which are part of the model, are.

    Temporary errors are retried; files that an interrupted push has uploaded are not sent again. The card and the
    weights replace those that are there.

    Args:
        folder (`str` or `Path`): of the run, with `pipeline/`; or of a pipeline.
        repo_id (`str`): "user/model"; made if there is none.
        token (`str`, *optional*): with the right to write; that of `hf auth login` without it.
        private (`bool`, *optional*, defaults to `True`): of a new repository; False makes one that is there public,
            too.
        license (`str`, *optional*): of the weights, by the Hub's name, e.g. "apache-2.0".
        evaluated_as (`str`, *optional*): the model's name in results.json, if that has several.
        dataset_name (`str`, *optional*): the public name of the training data; without it only one of the Hub is
            named.
        commit_message (`str`, *optional*, defaults to `"Push a run of diffusion-bridge-vq"`): first line of the
            commit.

    Returns:
        `str`: address of the repository.

    Raises:
        ValueError: no pipeline in the folder, one of another package, weights that aren't safetensors, or a name that
            the Hub doesn't take.
        OSError: the Hub refused (no such token, no right), or couldn't be reached in the end.
    """
    run = read_run(folder, dataset_name)
    files = pipeline_files(run, repo_id, license, evaluated_as, dataset_name) | run_files(run)
    return commit_files(files, repo_id, token, private, commit_message)


def pipeline_files(
    run: RunFiles,
    repo_id: str,
    license: str | None = None,
    evaluated_as: str | None = None,
    dataset_name: str | None = None,
) -> dict[str, Path | bytes]:
    """What makes a repository a pipeline, path in it -> file or content: weights, configurations, code, card."""
    card = make_model_card(
        run.folder,
        repo_id,
        license,
        evaluated_as,
        samples="samples.png" if "samples" in run.grids else None,
        carries_code=True,
        dataset_name=dataset_name,
    )
    assert run.pipeline is not None  # or there would be no card
    pipeline_class = getattr(pipelines, str(run.index.get("_class_name")), None)
    if pipeline_class is None:
        raise ValueError(f"{run.pipeline / INDEX_NAME} is of {run.index.get('_class_name')}, not of this package.")
    found: dict[str, Path | bytes] = {"README.md": str(card).encode(), INDEX_NAME: _to_json(run.index | AUTO_MAP)}
    for name in run.components:
        part = run.pipeline / name
        is_model = (part / CONFIG_NAME).is_file()
        config = CONFIG_NAME if is_model else SCHEDULER_CONFIG_NAME
        settings = redact(read_json(part / config))
        is_own = is_model and run.components[name][0].startswith(PACKAGE_PREFIX)  # a stock class would warn of the key
        found[f"{name}/{config}"] = _to_json(settings | (AUTO_MAP if is_own else {}))
        weights = [path for path in sorted(part.iterdir()) if path.suffix == ".safetensors" or "index" in path.name]
        if is_model and not find_weights(path.name for path in weights):
            raise ValueError(f"{part} has no weights in safetensors, and nothing else is pushed: save it again.")
        found |= {f"{name}/{path.name}": path for path in weights if path.suffix in (".safetensors", ".json")}
    return found | {
        path: text.encode() for path, text in carried_files(pipeline_class, run.components, repo_id).items()
    }


def run_files(run: RunFiles) -> dict[str, Path | bytes]:
    """Files of a run besides its weights; written from its first steps on."""
    found: dict[str, Path | bytes] = {f"{name}.png": path.read_bytes() for name, path in run.grids.items()}
    if run.config:
        found["training/config.json"] = _to_json(run.config)
    if run.metrics:
        found["training/metrics.jsonl"] = "".join(json.dumps(line) + "\n" for line in run.metrics).encode()
    if run.results:
        found["evaluation/results.json"] = _to_json({"format": "diffusion-bridge-vq results", "results": run.results})
    return found


def commit_files(
    files: dict[str, Path | bytes], repo_id: str, token: str | None, private: bool, commit_message: str
) -> str:
    """One commit with these files, to a repository that is made if there is none; errors as in [`push_run`]."""
    api = HfApi(token=token)
    carries_code = any(path.startswith(CODE_PREFIX) for path in files)
    models = [path.removesuffix(f"/{CONFIG_NAME}") for path in files if path.endswith(f"/{CONFIG_NAME}")]

    def is_outdated(name: str) -> bool:
        """Code of another push, and weights, which loading would take instead of these if they are shards."""
        part, _, file = name.partition("/")
        code = name.startswith(CODE_PREFIX) or name in BLOCK_FILES
        return name not in files and (code or (part in models and bool(find_weights([file]))))

    def push() -> str:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo.repo_id)
        there = [sibling.rfilename for sibling in info.siblings or []]
        outdated = [name for name in there if carries_code and is_outdated(name)]
        api.create_commit(
            repo.repo_id,
            [
                *(CommitOperationAdd(path, content) for path, content in files.items()),
                *(CommitOperationDelete(path) for path in outdated),
            ],
            commit_message=commit_message,
        )
        if info.private and not private:
            api.update_repo_settings(repo.repo_id, private=False)
        elif private and info.private is False:
            logger.warning(f"{repo.repo_id} was public before and still is.")
        return str(repo)

    return until_it_works(push, repo_id)


def open_repository(options: PushOptions, token: str | None) -> None:
    """
    Make the repository if there is none, in one attempt. Raises as [`push_run`], and PermissionError where the token
    may not write.
    """
    api = HfApi(token=token)
    until_it_works(
        lambda: api.create_repo(options.repo_id, private=not options.public, exist_ok=True), options.repo_id, 1
    )


def until_it_works(action: Callable[[], Result], repo_id: str, attempts: int = _ATTEMPTS) -> Result:
    """What `action` returns, tried again where that can help; errors as in [`push_run`]."""
    for attempt in range(attempts):
        try:
            return action()
        except HFValidationError as invalid:
            raise ValueError(f"{repo_id!r} isn't a repository's name, 'user/model'.") from invalid
        except (HTTPError, OSError, RuntimeError) as failed:
            # an upload that fails comes as a RuntimeError that has the reason as its cause
            error = failed.__cause__ if isinstance(failed, RuntimeError) else failed
            if not isinstance(error, (HTTPError, OSError)):
                raise
            if isinstance(error, OfflineModeIsEnabled):
                raise OSError(f"{repo_id!r} can't be pushed while HF_HUB_OFFLINE is set: unset it.") from error
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status in (401, 403):
                raise PermissionError(
                    f"The Hub doesn't let you write to {repo_id!r}: run `hf auth login` with a token that may write."
                ) from error
            ours = status is None and isinstance(error, _OF_THIS_MACHINE)
            if ours or (status is not None and status not in _RETRIED and status < 500):
                raise OSError(f"{repo_id!r} couldn't be pushed: {error}") from error
            if attempt == attempts - 1:
                raise OSError(
                    f"{repo_id!r} couldn't be pushed: {error}. What was uploaded is kept; try again."
                ) from error
            time.sleep(_FIRST_WAIT * 2**attempt)
    raise AssertionError("unreachable")


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
