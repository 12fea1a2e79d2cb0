"""What of a run may leave the machine: no paths, tokens or names of local folders."""

import itertools
import re
import shlex
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from .data.paths import looks_local

UNNAMED_DATASET = "unnamed-dataset"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NAMED_IN_TABLES = ("digits", "cifar10", "miniimagenet")  # data sets that everybody has
_PUBLIC_HOSTS = ("huggingface.co", "github.com", "arxiv.org")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>()]+")
_TOKEN = re.compile(r"\b(?:hf|ghp|gho|github_pat)_[A-Za-z0-9_]{4,}")
_SECRET = re.compile(r"(?i)\b(\w*(?:token|secret|password|passwd|api_?key)\w*)(\s*[=:]\s*)[^\s,;&'\"]+")
_ABSOLUTE = re.compile(r"(?<![\w.:/\\])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"=,:;()]+)+[/\\]?")
_OUTSIDE = re.compile(r"([A-Za-z]:)?[/\\~]|\.\.?[/\\]")
# Where a run was started, and what it left there, belongs to the machine; the rest to the model.
_OF_THE_MACHINE = (
    "output_dir", "init_from", "vqvae_from", "latents", "trajectories", "resume", "dry_run", "num_workers",
    "report_to", "profile",
)  # fmt: skip
_SCRIPTS = (
    "evaluate", "reproduce", "study_steps", "train_vqvae", "train_prior", "train_pixelcnn", "train_e2e", "distill",
)  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
# Flags of our scripts whose values aren't the name of anything on the machine.
_PUBLIC_FLAGS = {
    "--adversarial-weight", "--batch-size", "--budget", "--class-labels", "--dataset-name", "--device", "--extractor",
    "--features", "--guidance-scale", "--metrics", "--mixed-precision", "--num-images", "--num-inference-steps",
    "--num-nll-images", "--num-nll-samples", "--preset", "--seed", "--seeds", "--solver", "--solvers", "--spacings",
    "--split", "--stage", "--steps", "--test-split", "--train-split",
}  # fmt: skip


def public_dataset(dataset: str) -> str | None:
    """
    The name under which a data set may be published: "digits" or the id of a data set on the Hub.

    Returns:
        `str`; None for a folder of this machine or an address, whose name may be private.
    """
    if dataset in _NAMED_IN_TABLES:
        return dataset
    if "://" in dataset or looks_local(dataset) or not _HUB_ID.fullmatch(dataset):
        return None
    return dataset


def public_settings(settings: dict[str, Any], dataset_name: str | None = None) -> dict[str, Any]:
    """
    Settings of a run without what belongs to the machine.

    Args:
        settings (`dict[str, Any]`): as in config.json. Its `dataset_name` is what to call the data set.
        dataset_name (`str`, *optional*): what to call the data set instead.

    Returns:
        `dict[str, Any]`: `dataset` is [`UNNAMED_DATASET`] unless it has a name, or a public one.
    """
    kept = {key: value for key, value in settings.items() if key not in (*_OF_THE_MACHINE, "dataset_name", "dataset")}
    if settings.get("dataset"):
        kept["dataset"] = dataset_name or published_name(settings) or UNNAMED_DATASET
    cleaned: dict[str, Any] = redact(kept)
    return cleaned


def published_name(settings: dict[str, Any]) -> str | None:
    """The name of the data set in the settings of a run; None if it may not be published."""
    if "dataset_name" in settings:  # written when the run started, where its folders were
        return settings["dataset_name"] or None
    return public_dataset(str(settings.get("dataset")))


def public_result(result: dict[str, Any], names: tuple[str | None, ...] = ()) -> dict[str, Any]:
    """
    One line of results.json without what belongs to the machine.

    Args:
        result (`dict[str, Any]`): of results.json.
        names (`tuple[str | None, ...]`, *optional*, defaults to `()`): names of data sets that may be published; the
            first one that isn't None replaces one that may not.
    """
    cleaned: dict[str, Any] = redact({key: value for key, value in result.items() if key != "command"})
    given = _flag_values(str(result.get("command", "")), "--dataset-name")
    if dataset := result.get("dataset"):
        known = {*names, *given, *_NAMED_IN_TABLES} - {None}
        # A folder's name, which is the last part of its path, has no slash; an id on the Hub has one.
        public = dataset in known or bool(_HUB_ID.fullmatch(str(dataset)))
        cleaned["dataset"] = dataset if public else next((name for name in names if name), UNNAMED_DATASET)
    if command := public_command(str(result.get("command", ""))):
        cleaned["command"] = command
    return cleaned


def public_command(command: str) -> str:
    """
    A command of one of our scripts, with a word such as DATASET for what names something on the machine. Empty for
    other commands.
    """
    words, arguments = _split_program(_split(command))
    if not words:
        return ""
    measures = words[-1] in ("evaluate", "evaluate.py", "examples/evaluate.py")
    flag = ""
    for token in arguments:
        if token.startswith("--"):
            flag, _, value = token.partition("=")
            words.append(f"{flag}={_public_value(flag, value)}" if value else flag)
        elif not flag and re.fullmatch(r"[a-z_]+", token) and measures:
            words.append(token)  # one of its metrics
        else:
            words.append(_public_value(flag, token))
    return shlex.join(words)


def _split_program(tokens: list[str]) -> tuple[list[str], list[str]]:
    """The words that name one of our programs, without its folder, and its arguments; nothing for other programs."""
    if tokens and re.fullmatch(r"python[\d.]*", tokens[0]):
        tokens = tokens[1:]
    if len(tokens) > 1 and tokens[0] == "dbvq" and tokens[1].replace("-", "_") in _SCRIPTS:
        return tokens[:2], tokens[2:]
    if not tokens or not tokens[0].endswith(".py"):
        return [], []
    script = PurePosixPath(tokens[0].replace("\\", "/"))
    folder = script.parent.name
    if folder in ("examples", "benchmarks"):
        return ["python", f"{folder}/{script.name}"], tokens[1:]
    return (["python", script.name], tokens[1:]) if script.stem in _SCRIPTS else ([], [])


def redact(value: Any) -> Any:
    """JSON without paths of a machine, private addresses, tokens and passwords."""
    if isinstance(value, dict):
        return {
            key: redact(item)
            for key, item in value.items()
            if key != "_name_or_path" and not _SECRET.match(f"{key}=x")
        }
    if isinstance(value, list):
        return [redact(item) for item in value]
    if not isinstance(value, str):
        return value
    if _OUTSIDE.match(value):
        return "PATH"
    value = _URL.sub(lambda match: _public_url(match[0]), value)
    value = _ABSOLUTE.sub("PATH", value)
    return _SECRET.sub(r"\1\2***", _TOKEN.sub("***", value))


def _public_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "URL"
    if parts.scheme not in ("http", "https") or parts.hostname not in _PUBLIC_HOSTS:
        return "URL"
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _public_value(flag: str, value: str) -> str:
    if _NUMBER.fullmatch(value):
        return value
    if flag == "--dataset":
        return public_dataset(value) or "DATASET"
    if flag in _PUBLIC_FLAGS and not re.search(r"[/\\~]", value):
        return str(redact(value))
    word = flag.removeprefix("--").replace("-", "_").upper() or "FOLDER"
    name, equals, _ = value.partition("=")
    # the name that somebody gave to a model
    return f"{name}={word}" if equals and re.fullmatch(r"[\w.-]+", name) else word


def _flag_values(command: str, flag: str) -> list[str]:
    tokens = _split(command)
    found = [token.partition("=")[2] for token in tokens if token.startswith(f"{flag}=")]
    return found + [value for token, value in itertools.pairwise(tokens) if token == flag]


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an open quotation mark
        return []
