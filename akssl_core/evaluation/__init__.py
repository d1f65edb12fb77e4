"""What an encoder has learned: features, accuracies of classifiers on them, and whether they have collapsed.

The encoder never trains here: classifiers see features that were computed once.
"""

from __future__ import annotations

from .collapse import COLLAPSED_PROJECTION, COLLAPSED_STD, Spectrum, Verdict, spectrum, verdict
from .features import embed, pixels_as_features, sample, spread
from .linear import LinearScore, linear_probe
from .nearest import knn, neighbours

__all__ = [
    "COLLAPSED_PROJECTION",
    "COLLAPSED_STD",
    "LinearScore",
    "Spectrum",
    "Verdict",
    "embed",
    "knn",
    "linear_probe",
    "neighbours",
    "pixels_as_features",
    "sample",
    "spectrum",
    "spread",
    "verdict",
]
