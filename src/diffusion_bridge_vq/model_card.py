"""Model cards from a run's own files. What isn't in them is left out."""

import math
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from .evaluation.results import RESULTS_FILE, of_newest_weights, read_results
from .models import GumbelVQModel, PixelCNNPrior
from .pipelines import DiffusionBridgeVQInpaintPipeline
from .pipelines.saved_folder import find_pipeline_folder
from .pretrained import INDEX_NAME, find_weights, read_json
from .privacy import UNNAMED_DATASET, public_dataset, public_result, public_settings, published_name, redact
from .run_folder import RunFolder

_TASK = "unconditional-image-generation"
_SNIPPET_IMAGES = 16
_SNIPPET_EXAMPLES = 2
_INPAINT = DiffusionBridgeVQInpaintPipeline.__name__
_SHOWN_SETTINGS = (
    "preset",
    "mode",
    "max_train_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_schedule",
    "ema_decay",
    "mixed_precision",
    "random_flip",
    "seed",
)
# of terms and ways that a run may do without
_SHOWN_WEIGHTS = ("perceptual_weight", "adversarial_weight", "balance_classes", "decoder_only")
_GRIDS = ("samples", "reconstructions")


@dataclass
class RunFiles:
    """
    What a run left in its folder, without paths of its machine. All but `folder` may be missing.

    `pipeline` is the folder of the saved pipeline and `index` its model_index.json; `config` the settings, `metrics`
    the lines of metrics.jsonl, `results` those of evaluation/results.json, `grids` the newest picture of each kind.
    """

    folder: Path
    pipeline: Path | None = None
    index: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    grids: dict[str, Path] = field(default_factory=dict)

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """Name -> module and class."""
        return {name: (entry[0], entry[1]) for name, entry in self.index.items() if isinstance(entry, list)}


def read_run(folder: str | Path, dataset_name: str | None = None) -> RunFiles:
    """
    The files of a run's folder (which has `pipeline/` in the end), or of a pipeline's folder alone.

    Args:
        folder (`str` or `Path`): of the run or the pipeline.
        dataset_name (`str`, *optional*): what to call the data set; without it, one of this machine isn't named.

    Raises:
        ValueError: there is no such folder, or a file in it can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: give a run's folder or a saved pipeline's.")
    found, run = RunFiles(folder), RunFolder(folder)
    if (folder / INDEX_NAME).is_file():
        found.pipeline = folder
    elif (run.pipeline / INDEX_NAME).is_file():
        found.pipeline = run.pipeline
    if found.pipeline is not None:
        index = read_json(found.pipeline / INDEX_NAME)
        found.index = redact(index)
        if "id2label" in index:  # part of the model: changed names might be equal
            found.index["id2label"] = index["id2label"]
        if isinstance(examples := index.get("label_examples"), dict):
            public = [text for text in examples.values() if redact(text) == text]
            found.index["label_examples"] = {str(number): text for number, text in enumerate(public)}
    if found.pipeline == folder:
        return found
    if run.config.is_file():
        settings = read_json(run.config)
        found.config = public_settings(settings, dataset_name)
        dataset_name = dataset_name or published_name(settings)
    found.metrics = run.read_metrics()
    results = run.evaluation / RESULTS_FILE
    if results.is_file():
        found.results = [public_result(result, (dataset_name,)) for result in read_results(results)]
    for name in _GRIDS:
        newest = run.newest_grid(name)
        if newest is not None:
            found.grids[name] = newest
    return found


def make_model_card(
    folder: str | Path,
    source: str,
    license: str | None = None,
    evaluated_as: str | None = None,
    samples: str | None = None,
    carries_code: bool = False,
    dataset_name: str | None = None,
) -> ModelCard:
    """
    The card of a saved pipeline, made from what its run wrote: config.json, metrics.jsonl, evaluation/results.json and
    the weights' headers.

    Measurements stand in the card's metadata as a `model-index`. The Hub's newer `.eval_results/*.yaml` takes only
    tasks of data sets that are registered as benchmarks (huggingface.co/docs/hub/eval-results); none of these is.

    Args:
        folder (`str` or `Path`): of a run or of its pipeline.
        source (`str`): what people pass to `from_pretrained`: "user/model", or a folder.
        license (`str`, *optional*): of the weights, by the Hub's name, e.g. "apache-2.0".
        evaluated_as (`str`, *optional*): the model's name in results.json, if that has several.
        samples (`str`, *optional*): path of a picture in the folder of the card.
        carries_code (`bool`, *optional*, defaults to `False`): the repository has code for people without the package.
        dataset_name (`str`, *optional*): what to call the data set. Without it, and without a `dataset_name` in the
            run's settings, only a data set of the Hub is named.

    Raises:
        ValueError: no pipeline in the folder, or results of several models and no `evaluated_as`.
    """
    run = read_run(folder, dataset_name)
    if run.pipeline is None:
        try:
            find_pipeline_folder(folder)  # says what it is instead
        except ValueError as error:
            raise ValueError(f"There is no pipeline in {folder}. {error}") from error
        raise ValueError(f"There is no pipeline in {folder}: the run isn't over, or it trained an autoencoder alone.")
    results = _own_results(run, evaluated_as)
    is_bridge = "unet" in run.index
    for name, given in (("source", source), ("license", license), ("dataset_name", dataset_name)):
        if not (isinstance(given, str) and given) and (name == "source" or given is not None):
            raise TypeError(f"`{name}` must be a text, got {given!r}.")
    if not isinstance(run.index.get("_class_name"), str):
        raise ValueError(f"{run.pipeline / INDEX_NAME} names no class of pipeline: save the pipeline again.")
    vqvae = _read_config(
        run.pipeline / "vqvae" / GumbelVQModel.config_name,
        *("in_channels", "sample_size", "block_out_channels", "latent_channels", "num_vq_embeddings"),
        "quantizer_type",
    )
    network = _read_config(
        run.pipeline / ("unet" if is_bridge else "prior") / PixelCNNPrior.config_name, "_class_name"
    )
    dataset = run.config.get("dataset")
    of_dataset = f" of {dataset}" if dataset and dataset != UNNAMED_DATASET else ""
    num_classes = (network.get("num_class_embeds") or 1) - 1
    name = source.removesuffix("/pipeline").rsplit("/", 1)[-1]
    rows = [_row(result) for result in results]
    data = ModelCardData(
        license=license,
        library_name="diffusion-bridge-vq",
        pipeline_tag=_TASK,
        tags=["vq-vae", *(["diffusion", "ornstein-uhlenbeck-bridge"] if is_bridge else ["pixelcnn"])],
        datasets=[dataset] if dataset and "/" in dataset and public_dataset(dataset) else None,
        metrics=sorted({_metric_type(result) for result in results}) or None,
        model_name=name if results else None,
        eval_results=[_eval_result(result) for result in results] or None,
    )
    kind = "A diffusion bridge VQ-VAE" if is_bridge else "A PixelCNN over the codes of a VQ-VAE"
    text = (files(__package__) / "model_card_template.md").read_text(encoding="utf-8")
    card: ModelCard = ModelCard.from_template(
        data,
        template_str=text,
        title=name,
        summary=f"{kind} that draws {_size(vqvae)} images{of_dataset}.",
        samples=samples,
        components=_describe_components(run, vqvae, network),
        pipeline_class=run.index["_class_name"],
        source=source,
        call=_call(run.index),
        carries_code=carries_code,
        data=_describe_data(run.config),
        settings=_settings(run.config),
        cost=_describe_cost(run),
        last_metrics=_last_metrics(run.metrics),
        results=rows,
        provenance=_provenance(results),
        size=_size(vqvae),
        classes=num_classes,
        words=bool(run.index.get("label_words")),
        has_frechet=any(result["name"].startswith("frechet") for result in results),
        is_fid=any(_metric_type(result) == "fid" for result in results),
        bridge_steps=run.config.get("num_inference_steps") if is_bridge else None,
        default_steps=run.index.get("default_num_inference_steps") or 20,
        learned_guidance=RunFolder(run.pipeline).read_learned_guidance(),
        is_bridge=is_bridge,
    )
    card.content = re.sub(r"\n{3,}", "\n\n", card.content)  # what conditions leave behind
    return card


def _call(index: dict[str, Any]) -> str:
    """Arguments of the snippet's call."""
    if index["_class_name"] == _INPAINT:
        return "image, mask_image"
    if index.get("condition"):
        return "condition=image"
    examples = index.get("label_examples")
    if isinstance(examples, dict) and examples:
        return repr(list(examples.values())[:_SNIPPET_EXAMPLES])
    return f"batch_size={_SNIPPET_IMAGES}"


# ------------------------------------------------------------------------------------------------- reading a run


def _read_config(path: Path, *needed: str) -> dict[str, Any]:
    config = read_json(path)
    missing = [name for name in needed if name not in config]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: save the pipeline again.")
    return config


def _own_results(run: RunFiles, evaluated_as: str | None) -> list[dict[str, Any]]:
    """The newest of each measurement of this model, as it was when the run ended."""
    last_step = run.metrics[-1]["step"] if run.metrics else None
    found = of_newest_weights(result for result in run.results if result.get("step", last_step) == last_step)
    if evaluated_as is not None:
        found = [result for result in found if result.get("model") == evaluated_as]
    names = sorted({str(result["model"]) for result in found if "step" not in result and "model" in result})
    if len(names) > 1:
        raise ValueError(
            f"{run.folder / 'evaluation' / 'results.json'} has results of {', '.join(names)}: say which is this model "
            "with `evaluated_as`."
        )
    differ_by = ("name", "dataset", "reference", "extractor", "steps", "guidance_scale")
    newest = {}
    for result in found:
        if isinstance(result["value"], (int, float)) and math.isfinite(result["value"]):
            newest[tuple(result.get(key) for key in differ_by)] = result
    return list(newest.values())


# ------------------------------------------------------------------------------------------------ what it says


def _size(vqvae: dict[str, Any]) -> str:
    channels = {1: "gray", 3: "RGB"}.get(vqvae["in_channels"], f"{vqvae['in_channels']} channels")
    return f"{vqvae['sample_size']}x{vqvae['sample_size']} {channels}"


def _describe_components(run: RunFiles, vqvae: dict[str, Any], network: dict[str, Any]) -> list[str]:
    assert run.pipeline is not None
    side = vqvae["sample_size"] // 2 ** (len(vqvae["block_out_channels"]) - 1)
    channels = vqvae.get("vq_embed_dim") or vqvae["latent_channels"]
    lines = [
        f"**Autoencoder** (`GumbelVQModel`, {_count_weights(run.pipeline / 'vqvae')}): {_size(vqvae)} -> "
        f"{side}x{side} positions, {channels} channels, {vqvae['num_vq_embeddings']} codes "
        f"(`{vqvae['quantizer_type']}`)."
    ]
    if "unet" not in run.index:
        return [*lines, f"**Prior** (`PixelCNNPrior`, {_count_weights(run.pipeline / 'prior')}) over the codes."]
    bridge = _read_config(run.pipeline / "scheduler" / "scheduler_config.json", "_class_name")
    shown = ("num_train_timesteps", "beta_schedule", "prediction_type", "theta", "eta")
    settings = ", ".join(f"{key} {bridge[key]}" for key in shown if key in bridge)
    lines.append(f"**Prior** (`{network['_class_name']}`, {_count_weights(run.pipeline / 'unet')}) on the latents.")
    condition = str(run.index.get("condition", ""))
    if re.fullmatch(r"gray|low-resolution:\d+|column:.+", condition):
        kind = "another image of the same size" if condition.startswith("column:") else condition
        lines[-1] = f"{lines[-1][:-1]}, drawn from images (`condition`): {kind}."
    return [*lines, f"**Scheduler** (`{bridge['_class_name']}`): {settings}."]


def _count_weights(folder: Path) -> str:
    count = 0
    for name in find_weights(path.name for path in folder.iterdir()):
        if name.endswith(".safetensors"):
            with safe_open(folder / name, framework="pt") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return f"{count / 1e6:.2g}M numbers" if count < 1e7 else f"{count / 1e6:.0f}M numbers"


def _describe_data(config: dict[str, Any]) -> str:
    if config.get("dataset") == "digits":
        return (
            "Split `train` of the package's digits: 1,500 of the 1,797 of *Optical Recognition of Handwritten Digits* "
            "(Alpaydin and Kaynak, UCI, 1998; CC BY 4.0), upsampled from 8x8."
        )
    if config.get("kind") == "distill":
        return "Trajectories of a trained bridge, its teacher."
    size = f"{config.get('resolution')}x{config.get('resolution')}"
    dataset = config.get("dataset")
    named = "a data set that isn't named" if dataset in (None, UNNAMED_DATASET) else f"`{dataset}`"
    return f"Split `{config.get('split')}` of {named}, as {size} images."


def _settings(config: dict[str, Any]) -> list[tuple[str, Any]]:
    found = [(key, config[key]) for key in _SHOWN_SETTINGS if config.get(key) is not None]
    found += [(key, config[key]) for key in _SHOWN_WEIGHTS if config.get(key)]
    if config.get("perceptual_weight"):  # named, because a metric should use another network
        found.append(("perceptual_features", config.get("perceptual_features", "efficientnet-lite0")))
    return found


def _describe_cost(run: RunFiles) -> str:
    """Steps, and seconds, device and versions if the run wrote them down."""
    if not run.metrics:
        return ""
    last = run.metrics[-1]
    parts = [f"{int(last['step']):,} steps"]
    if "batch_size" in run.config:
        parts.append(f"batch {run.config['batch_size']} per process")
    if "train/seconds" in last:
        parts.append(f"{last['train/seconds']:,.0f} s, pictures and evaluations included")
    machine = run.config.get("machine")  # of runs that write it
    if isinstance(machine, dict):
        parts += [f"{key} {value}" for key, value in machine.items()]
    of_part = " Of the decoder alone: encoder, codebook and prior are an earlier model's."
    return ", ".join(parts) + "." + (of_part if run.config.get("decoder_only") else "")


def _last_metrics(metrics: list[dict[str, float]]) -> str:
    """The last value of each number of the model, with its step."""
    last: dict[str, tuple[float, int]] = {}
    for line in metrics:
        for name, value in line.items():
            if name.startswith(("loss/", "codebook/", "validation/", "heldout/")):
                last[name] = (value, int(line["step"]))
    return ", ".join(f"{name} {value:.4g} (step {step})" for name, (value, step) in last.items())


def _metric_type(result: dict[str, Any]) -> str:
    is_fid = result["name"].startswith("frechet") and result.get("extractor") == "inception"
    return str(result["name"]).replace("frechet", "fid") if is_fid else str(result["name"])


def _eval_result(result: dict[str, Any]) -> EvalResult:
    dataset = str(result.get("dataset", UNNAMED_DATASET))
    facts = {key: value for key, value in result.items() if key not in ("name", "value", "dataset")}
    against = f" against {result['reference']}" if "reference" in result else ""
    return EvalResult(
        task_type=_TASK,
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=_metric_type(result),
        metric_name=f"{_metric_type(result)}{against}",
        metric_value=result["value"],
        metric_args=facts,
    )


def _row(result: dict[str, Any]) -> list[str]:
    std = f" ({result['std']:.2g})" if "std" in result else ""
    columns = ("n", "reference", "extractor", "steps", "guidance_scale", "seed", "device")
    return [_metric_type(result), f"{result['value']:.4g}{std}", *(str(result.get(key, "")) for key in columns)]


def _provenance(results: list[dict[str, Any]]) -> str:
    commands = dict.fromkeys(result["command"] for result in results if "command" in result)
    versions = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in result["versions"].items())
        for result in results
        if "versions" in result
    )
    days = sorted({result["time"][:10] for result in results if "time" in result})
    return "\n".join(
        [
            "Standard deviations over images in parentheses. All of it, with versions and times, is in the metadata "
            "above and in `evaluation/results.json`.",
            *([f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}."] if days else []),
            *(f"With {line}." for line in versions),
            *(f"\n```bash\n{command}\n```" for command in commands),
        ]
    )
