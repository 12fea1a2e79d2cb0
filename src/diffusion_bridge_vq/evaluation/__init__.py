"""Measuring what models make."""

from .autoencoder_evaluator import AUTOENCODER_METRICS, AutoencoderEvaluator, RealImages, fingerprint
from .code_bits import bridge_code_bits
from .code_histograms import code_kl, code_perplexity, code_usage
from .config import EvaluationConfig
from .during_training import evaluation_of
from .elbo import BridgeELBO, bridge_elbo
from .evaluator import METRICS, Evaluator, evaluate_pipelines, write_report
from .features import EXTRACTORS, FeatureExtractor, extract, load_extractor
from .frechet import frechet_distance
from .image_quality import psnr, ssim
from .improved_precision_recall import PrecisionRecall, precision_recall
from .intervals import wilson_interval
from .nll import BridgeNLL, bridge_nll, pixelcnn_nll
from .results import append_result, append_results, read_results
from .tables import paper_tables
from .timing import SecondsPerSample, seconds_per_sample

__all__ = [
    "AUTOENCODER_METRICS",
    "EXTRACTORS",
    "METRICS",
    "AutoencoderEvaluator",
    "BridgeELBO",
    "BridgeNLL",
    "EvaluationConfig",
    "Evaluator",
    "FeatureExtractor",
    "PrecisionRecall",
    "RealImages",
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
    "paper_tables",
    "pixelcnn_nll",
    "precision_recall",
    "psnr",
    "read_results",
    "seconds_per_sample",
    "ssim",
    "wilson_interval",
    "write_report",
]
