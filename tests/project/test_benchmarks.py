"""The benchmark of feeding runs: with tiny files, and figures that are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_feeding(monkeypatch, tmp_path, threads, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import feeding
    import results

    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(feeding, "FILES", ((50, 40, "4:2:0"), (900, 800, "4:4:4")))
    feeding.main(["--batch", "8", "--repeats", "1"])
    decoding, batches = (
        json.loads((tmp_path / f"feeding-{name}.json").read_text())["rows"] for name in ("decoding", "batches")
    )
    assert [row["JPEG"][:9] for row in decoding] == ["50 x 40, ", "900 x 800"]
    assert [row["panoramas"] for row in batches] == [0, 1, 1]
    assert all(row["ratio"] > 0 for row in decoding + batches)
    assert batches[1]["strip MB"] < 1.1 * batches[1]["MB of pixels"] < batches[1]["canvas MB"] / 2
