"""How much memory the cases of `fast` hold, counted on the null device of `tests/cuda`: `make gpu-peaks`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import torch
from fast import CASES, NULL_PEAKS, Case
from rows import Found, Row, Rows, Setup, bounded
from trial import train

ROWS = Rows()


def peak(setup: Setup, case: Case) -> Iterator[Found]:
    """A few steps."""
    torch.cuda.reset_peak_memory_stats()
    train(case.plan(setup).engine([]), 3)
    gib = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    kept = json.loads(NULL_PEAKS.read_text()) if NULL_PEAKS.exists() else {}
    NULL_PEAKS.write_text(json.dumps(kept | {case.name: gib}, indent=2) + "\n")
    yield bounded("peak", gib, unit="GiB")


for one in CASES:
    ROWS.append(Row(one.name, partial(peak, case=one), limit=200))
