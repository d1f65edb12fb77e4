"""Runs that learn: for minutes (`make slow`), and short forms that are held against what they learned."""

from __future__ import annotations

import pytest

import akssl_core
from akssl_core.plugins.manager import installed

POINTS = 6.0  # of accuracy; other instructions of a processor, or another number of threads, make up to four of them


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_run_learns(tmp_path, seed):
    scores = akssl_core.run(method="simsiam", seed=seed, out=tmp_path / "run").metrics
    assert scores["knn_raw_pixels"] < 30
    assert scores["knn_top1"] >= scores["knn_raw_pixels"] + 10
    assert scores["knn_top1"] >= 1.5 * scores["knn_random_init"]
    assert scores["std_ratio"] > 0.2, "not collapsed"


@pytest.mark.parametrize("method", ["simclr", "vicreg"])
def test_a_short_run_goes_as_it_did(tmp_path, method):
    """The same seed in the same precision; `make leaderboard` measures anew where a change is meant to move it."""
    (course,) = (one for one in installed().get("method", method).courses if len(one.knn_top1) == 2)
    data = {"name": "shapes", "size": 2000}
    run = akssl_core.run(method=method, data=data, epochs=2, precision="fp32", out=tmp_path / "run", report=False)
    for row, seeds in zip(run.history, course.knn_top1, strict=True):
        assert abs(row["knn_top1"] - seeds[0]) < POINTS
