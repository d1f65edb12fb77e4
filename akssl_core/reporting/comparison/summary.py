"""One run in short: its settings, final numbers with intervals where an evaluation gave some, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...config.schema import leaves
from ..evaluations import TRAINED, judgements
from ..files import RunFiles
from ..svg import Point, short

COSTS = {"seconds": "seconds of training", "images_per_s": "images/s", "images_seen": "images seen"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A number, and its 95 % interval where one is known."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """`61.4`, or `61.4 [60.2, 62.6]`; a dash where there is none."""
        if not math.isfinite(self.value):
            return "-"
        if self.low is None or self.high is None:
            return short(self.value)
        return f"{short(self.value)} [{short(self.low)}, {short(self.high)}]"

    def record(self) -> dict[str, float | None]:
        """As plain values, fit for JSON."""
        found = {"value": self.value if math.isfinite(self.value) else None, "low": self.low, "high": self.high}
        return {key: value for key, value in found.items() if key == "value" or value is not None}


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in a comparison."""

    name: str
    path: Path
    status: str
    method: str
    settings: Mapping[str, Any]  # by dotted path
    metrics: Mapping[str, Measured]
    cost: Mapping[str, float]  # the keys of COSTS
    files: RunFiles

    @classmethod
    def read(cls, path: Path, name: str) -> Summary:
        """A run from its folder.

        Raises:
            AksslError: the folder holds no run, or a file of it is damaged.
        """
        run = RunFiles.read(path)
        final = {key: Measured(value) for key, value in run.final.items() if key != "seconds"}
        return cls(
            name=name,
            path=path,
            status=str(run.manifest.get("status", "unknown")),
            method=str(run.manifest.get("method", run.setting("method.name"))),
            settings=dict(leaves(run.config)),
            metrics={**final, **dict(_evaluated(path))},
            cost=_cost(run),
            files=run,
        )

    @property
    def verdict(self) -> str:
        """The verdict in short; a dash where the run has not ended and shows no fault."""
        found = self.files.diagnosis
        return found.words if self.files.final or found.verdict != "healthy" else "-"

    def curve(self, name: str) -> list[Point]:
        """(epoch, value) of a number of the rows, gaps as NaN; empty where it was never finite."""
        points = self.files.column(name)
        return points if any(math.isfinite(y) for _, y in points) else []

    def record(self) -> dict[str, Any]:
        """As plain values, fit for JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            "status": self.status,
            "method": self.method,
            "verdict": self.verdict,
            "diagnosis": asdict(self.files.diagnosis),
            "metrics": {key: value.record() for key, value in self.metrics.items()},
            "cost": dict(self.cost),
        }


def _cost(run: RunFiles) -> dict[str, float]:
    """Over all rows: those of a resumed run hold the time before it was stopped too."""
    timed = [row for row in run.rows if isinstance(row.get("seconds"), int | float)]
    seconds = math.fsum(row["seconds"] for row in timed)
    seen = math.fsum(row["seconds"] * (row.get("images_per_s") or 0.0) for row in timed)
    batch = run.setting("train.batch_size")
    found = {"seconds": seconds} if timed else {}
    found |= {"images_per_s": seen / seconds} if seconds > 0 else {}
    found |= {"images_seen": float(run.rows[-1]["step"] * batch)} if run.rows and isinstance(batch, int) else {}
    return found


def _evaluated(path: Path) -> Iterator[tuple[str, Measured]]:
    """The accuracies of the trained backbone that `akssl eval` has found: by protocol, data and share of the labels."""
    for share in judgements(path):
        if (score := share.scores().get(TRAINED)) is not None:
            yield (
                f"{share.protocol} on {share.data}, labels {share.labels}",
                Measured(score.accuracy, score.low, score.high),
            )
