"""From saved pipelines and real images to results in a file."""

import tempfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..data import load_images
from ..figures import nearest_sheets, plot_kl_maps, sample_sheets
from ..home_folder import expand_home
from ..models import GumbelVQModel
from ..pipelines import load_pipeline
from ..run_folder import RunFolder
from .arguments import as_device, check_count, check_model
from .config import EvaluationConfig
from .metrics import METRICS
from .model_outputs import ModelOutputs
from .processes import Processes
from .real_images import RealImages
from .results import RESULTS_FILE, append_results, describe_device, read_results, recall_results
from .sample_store import STORE_FILE, SampleStore
from .tables import all_results, paper_tables


def evaluate_pipelines(
    folders: Mapping[str, str | Path],
    dataset: str,
    output_dir: Path,
    config: EvaluationConfig | None = None,
    metrics: Collection[str] = METRICS,
    dataset_name: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    image_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    **facts: Any,
) -> None:
    """
    Measure saved pipelines on one data set; results go to `output_dir`/results.json. Whenever it is killed, the same
    call continues with the next batch of samples or the next metric. See [`run_metrics`].

    Args:
        folders (`Mapping[str, str]`): {model: folder of a saved pipeline, of an autoencoder, or of a run}. A metric
            that needs what a model doesn't have is skipped.
        dataset (`str`), image_column (`str`, *optional*), label_column (`str`, *optional*): as `load_images` takes
            them.
        output_dir (`Path`): of the results.
        config ([`EvaluationConfig`], *optional*, defaults to `EvaluationConfig()`): the settings.
        metrics (`Collection[str]`, *optional*, defaults to all): names in `METRICS`.
        dataset_name (`str`, *optional*, defaults to the data set's own): in the results, see [`RealImages`].
        train_split (`str`, *optional*, defaults to "train"): of the images that models were trained on.
        test_split (`str`, *optional*, defaults to "test"): of the images that models are compared with.
        batch_size (`int`, *optional*, defaults to 64): images per call of the networks.
        device (`torch.device`, *optional*, defaults to "cpu"): of everything.
        processes ([`Processes`], *optional*): that measure together, each calling this function; without it this
            process works alone.
        facts: stored with every result, e.g. preset.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: no pipeline, a name that can't be a file's, a folder that can't be written to, models of different
            image sizes, an unknown metric, an autoencoder with metrics of a prior, a results.json of another program,
            and what the metrics raise.
    """
    config = config or EvaluationConfig()
    check_model("config", config, EvaluationConfig)
    if not isinstance(folders, Mapping):
        raise TypeError(f"`folders` must be {{model: folder}}, got {type(folders).__name__}.")
    check_count("batch_size", batch_size)
    device, output_dir = as_device(device), Path(output_dir)
    if not folders:
        raise ValueError("No pipeline is given: name at least one, e.g. bridge=outputs/demo/pipeline.")
    for model in folders:
        if not model or set(model) & set('/\\:*?"<>|'):
            raise ValueError(f"{model!r} can't be a model's name: its figures are files that are named after it.")
    _check_names(metrics)
    processes = processes or Processes()
    processes.decide(lambda: _check_output(output_dir))
    store = SampleStore(output_dir / STORE_FILE)
    facts |= {"train_split": train_split, "test_split": test_split}
    real, size, column = None, {}, None
    for model, folder in folders.items():
        evaluated = _load(Path(folder)).to(device)
        alone = isinstance(evaluated, GumbelVQModel)
        of_autoencoders = [name for name, metric in METRICS.items() if not metric.needs]
        if alone and not set(metrics) & set(of_autoencoders):
            raise ValueError(f"{folder} is an autoencoder: its metrics are {', '.join(of_autoencoders)}.")
        vqvae = (evaluated if alone else evaluated.vqvae).config
        own_size = {"resolution": vqvae.sample_size, "channels": vqvae.in_channels}
        own_column = _condition_column(evaluated)
        if real is not None and own_size != size:
            raise ValueError(f"{model} has images of {own_size}, those before it of {size}: evaluate it by itself.")
        if real is None or own_column not in (None, column):
            size, column = own_size, own_column
            options: dict[str, Any] = {"image_column": image_column, "label_column": label_column, **size}
            if column is not None:
                options["condition_column"] = column
            if processes.count > 1:
                options["in_memory"] = False  # each decodes what it works on
            train, test = (load_images(dataset, split=split, **options) for split in (train_split, test_split))
            name = dataset_name or train.name
            features = output_dir / "features"
            real = RealImages(name, train, test, config.num_images, config.extractor, device, features, processes)
        outputs = ModelOutputs(model, evaluated, real, store, config, batch_size)
        run_metrics(metrics, outputs, output_dir, **facts)


def run_metrics(names: Collection[str], outputs: ModelOutputs, output_dir: Path, **facts: Any) -> None:
    """
    Run metrics on one model. The figures of a metric are appended to `output_dir`/results.json together, with what it
    takes to read them. A metric whose figures of the same weights, images and settings are there isn't run again.

    Args:
        names (`Collection[str]`): in `METRICS`. A metric that needs what the model doesn't have is skipped.
        outputs ([`ModelOutputs`]): of the model.
        output_dir (`Path`): exists.
        facts: stored with every result.

    Raises:
        ValueError: a results.json of another program, and what the metrics raise.
    """
    _check_names(names)
    check_model("outputs", outputs, ModelOutputs)
    path, real, processes = output_dir / RESULTS_FILE, outputs.real, outputs.processes
    for name in names:
        metric = METRICS[name]
        missing = metric.needs - outputs.provides
        if missing:
            processes.print(f"{outputs.model:<12} {name}: skipped, there are no {', '.join(sorted(missing))}")
            continue
        count = metric.count(outputs)
        for part in metric.parts:
            settings: dict[str, Any] = {"metric": name, "model": outputs.model, "weights": outputs.weights}
            settings |= {"dataset": real.dataset, "images": real.fingerprint, "n": count, "seed": outputs.config.seed}
            settings |= facts | metric.settings(outputs) | (outputs.condition_facts if metric.needs else {}) | part
            here = {"device": describe_device(real.device)} if metric.per_device else {}
            found = processes.decide(partial(recall_results, path, **settings, **here))
            remark = " (measured before)" if found else ""
            if not found:
                figures, pictures = metric.measure(outputs, count, **part)
                if pictures:
                    named = {f"{kind}/{outputs.model}": tensor for kind, tensor in pictures.items()}
                    processes.decide(partial(outputs.store.update, named))
                found = processes.decide(partial(append_results, path, figures, **settings, device=real.device))
            for result in found:
                processes.print(f"{outputs.model:<12} {result['name']:<24} {result['value']:.4g}{remark}")


def write_report(output_dir: Path) -> list[Path]:
    """
    The paper's tables and all results (tables.md), KL maps, sheets of samples, and of samples next to their
    nearest training images, from what `output_dir` holds.

    Raises:
        ValueError: there is no results.json, or it or figures.safetensors is damaged.
    """
    output_dir = Path(output_dir)
    results = output_dir / RESULTS_FILE
    if not results.is_file():
        raise ValueError(f"There is no {results}: measure something first.")
    tables, store = output_dir / "tables.md", SampleStore(output_dir / STORE_FILE)
    found = read_results(results)
    maps, floors, samples, nearest = (store.pictures(kind) for kind in ("kl", "kl_floor", "samples", "nearest"))
    tables.write_text(f"{paper_tables(found)}\n{all_results(found)}", encoding="utf-8")
    sheets = [*sample_sheets(samples, output_dir), *nearest_sheets(nearest, output_dir)]
    return [tables, *plot_kl_maps(maps, floors, output_dir), *sheets]


def _check_names(metrics: Collection[str]) -> None:
    """
    Raises:
        TypeError: no list of names.
        ValueError: an unknown metric.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Collection):
        raise TypeError(f"`metrics` must be a list of names, got {metrics!r:.40}.")
    unknown = [str(metric) for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"Metrics are {', '.join(METRICS)}, got {', '.join(unknown)}.")


def _check_output(output_dir: Path) -> None:
    """
    Create the folder, and read what is there, before any work.

    Raises:
        ValueError: it can't be written to, or has damaged files.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"Results can't be written to {output_dir} ({reason}): give another folder.") from error
    if (output_dir / RESULTS_FILE).exists():
        read_results(output_dir / RESULTS_FILE)
    SampleStore(output_dir / STORE_FILE).read()


def _condition_column(evaluated: DiffusionPipeline | GumbelVQModel) -> str | None:
    """The column of the data set that a model draws from."""
    condition = getattr(evaluated, "image_condition", None)
    return None if condition is None else condition.column


def _load(folder: Path) -> DiffusionPipeline | GumbelVQModel:
    """What a folder holds: a pipeline, an autoencoder, or a run that left one of these."""
    folder = expand_home(folder)
    run = RunFolder(folder)
    if not (folder / "model_index.json").is_file():  # not a pipeline
        folder = next((path for path in (run.pipeline, run.autoencoder) if path.is_dir()), folder)
        if not (folder / "model_index.json").is_file() and (folder / "config.json").is_file():
            return GumbelVQModel.from_pretrained(folder)
    return load_pipeline(folder)
