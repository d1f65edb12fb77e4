"""A short form of the default recipe learns what it has learned."""

from __future__ import annotations

from pathlib import Path

from akssl_plugin_simclr import SimCLR

import akssl_core

POINTS = 6.0  # of accuracy; other instructions of a processor, or another number of threads, make up to four of them
SHORT = {"data": {"name": "shapes", "size": 2000}, "epochs": 2, "precision": "fp32"}


def test_a_short_run_goes_as_it_did(tmp_path: Path) -> None:
    """The same seed in the same precision; `make leaderboard` measures anew where a change is meant to move it."""
    result = akssl_core.run(method="simclr", seed=0, out=tmp_path / "run", report=False, **SHORT)
    (course,) = (one for one in SimCLR.courses if len(one.knn_top1) == SHORT["epochs"])
    for row, runs in zip(result.history, course.knn_top1, strict=True):
        assert abs(row["knn_top1"] - runs[0]) < POINTS, f"epoch {row['epoch']}: {row['knn_top1']}, not {runs[0]}"
