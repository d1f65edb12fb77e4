"""The report of a run: one HTML file made from the files of the run folder alone.

`render` is the page from top to bottom; each section is a function of `RunFiles` that gives a list with its
markup, or an empty one where the run has nothing to show there.
"""

from __future__ import annotations

from pathlib import Path

from .charts import curves, scores, spectrum, times
from .files import RunFiles
from .html import Html, page, tag
from .pictures import attention, embedding_map, nearest, of_method, views
from .records import adaptation, environment, evaluation, notes, settings, unreadable, use
from .svg import short

SECTIONS = (
    scores, adaptation, evaluation, curves, embedding_map, nearest, attention, spectrum, of_method, views, times, use,
    notes, settings, unreadable, environment,
)  # fmt: skip
UNFINISHED = {"running": "Still running", "stopped": "Stopped", "failed": "Failed"}


def render(run_dir: Path) -> str:
    """The report of the run in this folder as a self-contained HTML document.

    Raises:
        RunDirError: the folder holds no run, or a file of it is damaged.
        ConfigError: `config.yaml` is missing or damaged.
    """
    run = RunFiles.read(run_dir)
    parts = [part for make in SECTIONS for part in make(run)]
    return page(_title(run), _header(run), *parts)


def _title(run: RunFiles) -> str:
    return f"{run.manifest.get('method', 'run')} — {run.path.name}"


def _header(run: RunFiles) -> Html:
    """Name, circumstances and the verdict."""
    names = (run.setting(path) for path in ("data.name", "backbone.name"))
    data, backbone = (str(name) if name else None for name in names)
    facts = [
        f"data {data}" if data else "",
        f"backbone {backbone}" if backbone else "",
        "trained with labels" if run.manifest.get("trained_with_labels") else "",
        f"seed {run.manifest['seed']}" if "seed" in run.manifest else "",
        f"status {run.status}",
        f"started {run.manifest['created']}" if "created" in run.manifest else "",
    ]
    tone, sentence = headline(run)
    return tag(
        "header",
        tag("h1", _title(run)),
        tag("div", " · ".join(fact for fact in facts if fact), class_="quiet"),
        tag("p", sentence, class_=f"verdict {tone}", role="status"),
    )


def headline(run: RunFiles) -> tuple[str, str]:
    """How the first sentence is coloured, "good", "bad" or "open", and the sentence: how far it came, its verdict."""
    found = run.diagnosis
    verdict = f"{found}"[:1].upper() + f"{found}"[1:]
    if run.status not in UNFINISHED:
        bad = found.verdict != "healthy" or found.fell_short
        return "bad" if bad else "good" if found.outcome == "learned" else "open", verdict
    what_next = {
        "stopped": f". Go on with: akssl resume {run.path}",
        "failed": f": {run.manifest.get('error', 'no reason was recorded')}",
    }.get(run.status, ".")
    faulty = found.verdict != "healthy"
    said = f"{UNFINISHED[run.status]}{_how_far(run)}{what_next}{f' {verdict}' if faulty else ''}"
    return "bad" if faulty or run.status == "failed" else "open", said


def _how_far(run: RunFiles) -> str:
    """The last row's step, epoch and loss."""
    if not run.rows:
        return " before its first row of metrics"
    last = run.rows[-1]
    loss = f", loss {short(last['loss'])}" if last.get("loss") is not None else ""
    return f" at step {last['step']}, epoch {short(last['epoch'])}{loss}"
