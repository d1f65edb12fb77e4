"""Did it help? A run's backbone beside raw pixels, itself untrained and other weights, with intervals.

Everything happens on copies: a run folder is left as it is, but for its `evaluation.json`.
"""

from __future__ import annotations

from .judging import evaluate
from .result import Comparison, Evaluation, Interval, Score, interval
from .split import Split, stratified

__all__ = ["Comparison", "Evaluation", "Interval", "Score", "Split", "evaluate", "interval", "stratified"]
