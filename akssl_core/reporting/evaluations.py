"""The section on what `akssl eval` has found, from its file in the run folder.

The file is another command's: one of another form is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..rundir.files import digest
from ..rundir.folder import RunDir
from ..rundir.schemas import Judged, Judgement
from .files import RunFiles
from .html import Html, section, table, tag

TRAINED = "trained"  # the system that is the run's own backbone


@dataclass(frozen=True, slots=True)
class Share:
    """The scores of one protocol on some data with a share of the labels."""

    protocol: str
    data: str
    labels: str  # 0.1
    found: Judgement

    def scores(self) -> dict[str, Judged]:
        """The accuracy of each system, with as many neighbours as the evaluation itself puts first."""
        return {score.system: score for score in self.found.scores if score.k == self.found.k}


def judgements(run_dir: Path) -> list[Share]:
    """All that `evaluation.json` says of the weights that the folder holds now; nothing where it cannot be read."""
    known, weights = RunDir(run_dir).evaluations, run_dir / "backbone.safetensors"
    with suppress(OSError):
        if known.backbone not in ("", digest(weights.read_bytes())):  # they have changed since they were judged
            return []
    return [
        Share(protocol, data, labels, found)
        for protocol, by_data in known.results.items()
        for data, by_share in by_data.items()
        for labels, found in by_share.items()
    ]


def evaluation(run: RunFiles) -> list[Html]:
    """A table for each protocol and data: every system's accuracy with its interval, by share of the labels."""
    found = judgements(run.path)
    if not found:
        return []
    groups: dict[tuple[str, str], list[Share]] = {}
    for share in found:
        groups.setdefault((share.protocol, share.data), []).append(share)
    parts = [part for (protocol, data), shares in groups.items() for part in _group(protocol, data, shares)]
    interval = next((share.found.interval for share in found if share.found.interval), "")
    said = [tag("p", f"Interval: {interval}.", class_="quiet")] if interval else []
    return [section("Evaluation", *parts, *said)]


def _group(protocol: str, data: str, shares: list[Share]) -> Iterator[Html]:
    systems = list(dict.fromkeys(system for share in shares for system in share.scores()))
    systems.sort(key=lambda system: system != TRAINED)  # stable: the others stay in order
    rows = [[_percent(share.labels), *(_cell(share.scores().get(system)) for system in systems)] for share in shares]
    k = next((f", k = {share.found.k}" for share in shares if share.found.k), "")
    caption = f"{protocol}{k} on {data}: accuracy in percent with its interval"
    yield table(["Labels", *systems], rows, caption=caption, kind="numbers")
    answers = [tag("li", share.found.answer) for share in shares if share.found.answer]
    if answers:
        yield tag("ul", *answers)
    yield from (tag("p", note, class_="quiet") for note in dict.fromkeys(n for s in shares for n in s.found.notes))


def _cell(score: Judged | None) -> str:
    if score is None:
        return ""
    known = score.low is not None and score.high is not None
    return f"{score.accuracy:.1f} [{score.low:.1f}, {score.high:.1f}]" if known else f"{score.accuracy:.1f}"


def _percent(labels: str) -> str:
    try:
        return f"{100 * float(labels):g} %"
    except ValueError:
        return labels
