"""What an encoder has learned: features, accuracies of classifiers on them, and whether they have collapsed.

The encoder never trains here: classifiers see features that were computed once.
"""

from __future__ import annotations

from .collapse import COLLAPSED_PROJECTION, COLLAPSED_STD, Spectrum, Verdict, spectrum, verdict
from .diagnosis import Diagnosis, diagnose
from .features import embed, features_of, pixels_as_features, sample, spread
from .health import Health, TooFewSamples, alignment, alpha_req, lidar, of_features, of_views, uniformity
from .linear import LinearScore, linear_guesses, linear_probe
from .linear_sgd import LARGE, linear_guesses_sgd
from .nearest import knn, knn_guesses, neighbours

__all__ = [
    "COLLAPSED_PROJECTION",
    "COLLAPSED_STD",
    "LARGE",
    "Diagnosis",
    "Health",
    "LinearScore",
    "Spectrum",
    "TooFewSamples",
    "Verdict",
    "alignment",
    "alpha_req",
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
    "sample",
    "spectrum",
    "spread",
    "uniformity",
    "verdict",
]
