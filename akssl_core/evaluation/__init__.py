"""What an encoder has learned: features, accuracies of classifiers on them, and whether they have collapsed.

The encoder never trains here: classifiers see features that were computed once.
"""

from __future__ import annotations

from .collapse import COLLAPSED_PROJECTION, COLLAPSED_STD, Spectrum, Verdict, spectrum, verdict
from .features import embed, features_of, pixels_as_features, sample, spread
from .linear import LinearScore, linear_guesses, linear_probe
from .linear_sgd import LARGE, linear_guesses_sgd
from .nearest import knn, knn_guesses, neighbours

__all__ = [
    "COLLAPSED_PROJECTION",
    "COLLAPSED_STD",
    "LARGE",
    "LinearScore",
    "Spectrum",
    "Verdict",
    "embed",
    "features_of",
    "knn",
    "knn_guesses",
    "linear_guesses",
    "linear_guesses_sgd",
    "linear_probe",
    "neighbours",
    "pixels_as_features",
    "sample",
    "spectrum",
    "spread",
    "verdict",
]
