"""Runs that learn for minutes: `make slow`."""

from __future__ import annotations

import pytest

import akssl_core


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_run_learns(tmp_path, seed):
    scores = akssl_core.run(method="simsiam", seed=seed, out=tmp_path / "run").metrics
    assert scores["knn_raw_pixels"] < 30
    assert scores["knn_top1"] >= scores["knn_raw_pixels"] + 10
    assert scores["knn_top1"] >= 1.5 * scores["knn_random_init"]
    assert scores["std_ratio"] > 0.2, "not collapsed"
