"""Measures of an encoder: features, accuracies of classifiers on them, and whether they have collapsed.

The encoder never trains here: classifiers see features that were computed once.
"""

from __future__ import annotations

from .diagnosis import GAIN_MORE, NO_GAIN, Diagnosis, Verdict, collapse_bound, diagnose, read_diagnosis, verdict
from .features import embed, features_of, pixels_as_features, sample, spread
from .health import (
    Health,
    Spectrum,
    TooFewSamples,
    alignment,
    alpha_req,
    lidar,
    of_features,
    of_views,
    spectrum,
    uniformity,
)
from .linear import LinearScore, linear_guesses, linear_probe
from .linear_sgd import LARGE, linear_guesses_sgd
from .nearest import knn, knn_guesses, neighbours

__all__ = [
    "GAIN_MORE",
    "LARGE",
    "NO_GAIN",
    "Diagnosis",
    "Health",
    "LinearScore",
    "Spectrum",
    "TooFewSamples",
    "Verdict",
    "alignment",
    "alpha_req",
    "collapse_bound",
    "diagnose",
    "embed",
    "features_of",
    "knn",
    "knn_guesses",
    "lidar",
    "linear_guesses",
    "linear_guesses_sgd",
    "linear_probe",
    "neighbours",
    "of_features",
    "of_views",
    "pixels_as_features",
    "read_diagnosis",
    "sample",
    "spectrum",
    "spread",
    "uniformity",
    "verdict",
]
