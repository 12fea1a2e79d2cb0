"""Measuring what models make: `METRICS` are run by `evaluate_pipelines` and from the command line."""

from .class_accuracy import LinearClassifier, train_classifier
from .code_bits import bridge_code_bits
from .code_histograms import code_kl, code_perplexity, code_usage
from .config import EvaluationConfig
from .during_training import evaluation_of
from .elbo import BridgeELBO, bridge_elbo
from .features import EXTRACTORS, FeatureExtractor, extract, load_extractor
from .fingerprints import fingerprint
from .frechet import frechet_distance
from .image_quality import psnr, ssim
from .improved_precision_recall import PrecisionRecall, precision_recall
from .intervals import wilson_interval
from .measurement import Measurement
from .memorization import Novelty, novelty
from .metrics import METRICS, Metric
from .model_outputs import ModelOutputs
from .nll import BridgeNLL, bridge_nll, pixelcnn_nll
from .processes import Processes
from .real_images import RealImages
from .results import append_result, append_results, read_results
from .runner import evaluate_pipelines, run_metrics, write_report
from .sample_store import SampleStore
from .tables import paper_tables
from .timing import SecondsPerSample, seconds_per_sample

__all__ = [
    "EXTRACTORS",
    "METRICS",
    "BridgeELBO",
    "BridgeNLL",
    "EvaluationConfig",
    "FeatureExtractor",
    "LinearClassifier",
    "Measurement",
    "Metric",
    "ModelOutputs",
    "Novelty",
    "PrecisionRecall",
    "Processes",
    "RealImages",
    "SampleStore",
    "SecondsPerSample",
    "append_result",
    "append_results",
    "bridge_code_bits",
    "bridge_elbo",
    "bridge_nll",
    "code_kl",
    "code_perplexity",
    "code_usage",
    "evaluate_pipelines",
    "evaluation_of",
    "extract",
    "fingerprint",
    "frechet_distance",
    "load_extractor",
    "novelty",
    "paper_tables",
    "pixelcnn_nll",
    "precision_recall",
    "psnr",
    "read_results",
    "run_metrics",
    "seconds_per_sample",
    "ssim",
    "train_classifier",
    "wilson_interval",
    "write_report",
]
