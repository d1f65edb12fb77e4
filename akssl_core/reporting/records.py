"""The sections of records: notes, settings with their origin, environment, unreadable files, use, and evaluations.

What `akssl eval` has found is in another command's file: one of another form is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.schema import leaves
from ..rundir.files import digest
from ..rundir.folder import RunDir
from ..rundir.schemas import Judged, Judgement
from .files import RunFiles, text_of
from .html import Html, details, join, section, table, tag
from .svg import short

DEFAULT = "default"  # the origin of a value that nobody decided
MOST_FILES = 200
HEALTH = ("std_ratio", "rankme", "alignment", "uniformity")  # of each mixture
TRAINED = "trained"  # the system that is the run's own backbone


def use(run: RunFiles) -> list[Html]:
    """Three lines that load the trained backbone."""
    if not run.has_backbone:
        return []
    code = (
        "import akssl_core\n"
        f"backbone = akssl_core.load_backbone({run.path.as_posix()!r})\n"
        "features = backbone(backbone.preprocess(images))  # images: Pillow, uint8 array or tensor -> (N, D)\n"
    )
    return [section("Use the backbone", tag("pre", tag("code", code)))]


def notes(run: RunFiles) -> list[Html]:
    """The notes of a run: decisions and findings along the way."""
    found: Sequence[str] = run.manifest.get("notes", [])
    return [section("Notes", tag("ul", *(tag("li", note) for note in found)))] if found else []


def settings(run: RunFiles) -> list[Html]:
    """Every setting with who decided it: what somebody decided in the open, defaults on request."""
    if not run.config:
        return []
    undecided = DEFAULT if run.provenance else "not recorded"
    rows = [[path, _value(value), run.provenance.get(path, undecided)] for path, value in leaves(run.config)]
    columns = ["Setting", "Value", "Decided by"]
    decided = [row for row in rows if row[2] != DEFAULT]
    defaults = [row for row in rows if row[2] == DEFAULT]
    parts = [table(columns, decided, kind="wide")] if decided else []
    if defaults:
        listed = table(columns[:2], [row[:2] for row in defaults])
        parts.append(details(f"{len(defaults)} settings at their default", listed))
    return [section("Settings", *parts)]


def _value(value: Any) -> Html:
    return tag("span", text_of(value), class_="value")


def environment(run: RunFiles) -> list[Html]:
    """Hardware, data, versions, and the plugins with the columns that their rows have."""
    kinds = {"hardware": "Hardware", "data": "Data", "versions": "Versions"}
    facts = join(_facts(run.manifest.get(key, {}), title) for key, title in kinds.items())
    rows: Sequence[Mapping[str, Any]] = run.manifest.get("plugins", [])
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[text_of(row[name]) if name in row else "" for name in columns] for row in rows]
    plugins = table(columns, cells, caption="Plugins") if rows else Html()
    parts = [tag("div", facts, class_="facts")] if facts else []
    return [section("Environment", *parts, plugins)] if facts or plugins else []


def _facts(facts: Mapping[str, Any], title: str) -> Html:
    """Names and values; lists (the names of a thousand classes, say) are left to the manifest."""
    rows = [[name, _value(value)] for name, value in leaves(facts) if not isinstance(value, list)]
    return table([title, ""], rows) if rows else Html()


def unreadable(run: RunFiles) -> list[Html]:
    """Files that could not be read; another image stood in for each."""
    if not run.unreadable:
        return []
    count = len(run.unreadable)
    listed = tag("ul", *(tag("li", line.replace("\t", ": ")) for line in run.unreadable[:MOST_FILES]))
    more = [tag("p", f"… and {count - MOST_FILES} more in unreadable.txt")] if count > MOST_FILES else []
    said = tag("p", f"{count} file{'' if count == 1 else 's'} could not be read; another image stood in for each.")
    return [section("Unreadable files", said, details("List", listed, *more) if count > 10 else join([listed, *more]))]


def adaptation(run: RunFiles) -> list[Html]:
    """The start, what was trained and mixtures of both, beside each other, and which is kept."""
    found = run.adaptation
    if found is None:
        return []
    columns, rows = mixture_rows(found)
    how = tag("p", f"How: {found['how']}.", class_="quiet")
    return [section("Adaptation", tag("p", found["answer"]), table(columns, rows, kind="numbers"), how)]


def mixture_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the mixtures in `adaptation.json`."""
    mixtures: Sequence[Mapping[str, Any]] = found["mixtures"]
    accuracies = [("k-NN, held out", "knn_top1", "knn_low", "knn_high"), ("gain", "gain", "gain_low", "gain_high")]
    shown = [names for names in accuracies if any(names[1] in row for row in mixtures)]
    health = dict.fromkeys(name for row in mixtures for name in row if name in HEALTH)
    rows = [
        [
            f"{_share_name(row['share'])}{' (kept)' if row['share'] == found['kept'] else ''}",
            *(_estimate(*(row.get(name) for name in names[1:])) for names in shown),
            *(short(row[name]) if row.get(name) is not None else "" for name in health),
        ]
        for row in mixtures
    ]
    return ["weights", *(names[0] for names in shown), *health], rows


def _share_name(share: float) -> str:
    return {0.0: "start", 1.0: "trained"}.get(share, f"{share:.0%} trained")


def _estimate(value: float | None, low: float | None, high: float | None) -> str:
    return "" if value is None or low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


# -- what `akssl eval` has found ------------------------------------------------------------------
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
    parts: list[Html] = []
    for found in score_tables(run):
        parts.append(table(found.columns, found.rows, caption=found.caption, kind="numbers"))
        parts += [tag("ul", *(tag("li", answer) for answer in found.answers))] if found.answers else []
        parts += [tag("p", note, class_="quiet") for note in found.notes]
    return [section("Evaluation", *parts)] if parts else []


@dataclass(frozen=True, slots=True)
class Scores:
    """A table of scores with their intervals, and what was said of it."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    answers: list[str]
    notes: list[str]


def score_tables(run: RunFiles, said: Callable[[str], str] = str) -> list[Scores]:
    """A table for each protocol and data, that by which the method is judged first; `said` turns data into a name."""
    groups: dict[tuple[str, str], list[Share]] = {}
    for share in judgements(run.path):
        groups.setdefault((share.protocol, said(share.data)), []).append(share)
    first = run.manifest.get("headline")
    ordered = sorted(groups.items(), key=lambda group: group[0][0] != first)
    return [_group(protocol, data, shares) for (protocol, data), shares in ordered]


def metric_of(protocol: str) -> str:
    """What a protocol measures."""
    return "mean IoU" if protocol == "segment" else "accuracy"


def _group(protocol: str, data: str, shares: list[Share]) -> Scores:
    systems = list(dict.fromkeys(system for share in shares for system in share.scores()))
    systems.sort(key=lambda system: system != TRAINED)  # stable: the others stay in order
    rows = [[_percent(share.labels), *(_cell(share.scores().get(system)) for system in systems)] for share in shares]
    k = next((f", k = {share.found.k}" for share in shares if share.found.k), "")
    caption = f"{protocol}{k} on {data}: {metric_of(protocol)} in percent with its interval"
    answers = [share.found.answer for share in shares if share.found.answer]
    notes = [note for share in shares for note in share.found.notes]
    notes += [f"Interval: {share.found.interval}." for share in shares if share.found.interval]
    notes = list(dict.fromkeys(notes))
    return Scores(caption, ["Labels", *systems], rows, answers, notes)


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
