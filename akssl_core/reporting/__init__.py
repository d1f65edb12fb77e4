"""The report of a run: one HTML file made from the files of the run folder alone.

`render` is the page from top to bottom; each section is a function of `RunFiles` that gives a list with its
markup, or an empty one where the run has nothing to show there.
"""

from __future__ import annotations

from pathlib import Path

from .charts import curves, scores, times
from .embedding import embedding_map, spectrum
from .evaluations import evaluation
from .files import RunFiles
from .html import Html, page, tag
from .pictures import attention, nearest, views
from .records import environment, notes, settings, unreadable, use
from .verdict import headline

SECTIONS = (
    scores,
    evaluation,
    curves,
    embedding_map,
    nearest,
    attention,
    spectrum,
    views,
    times,
    use,
    notes,
    settings,
    unreadable,
    environment,
)


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
        f"seed {run.manifest['seed']}" if "seed" in run.manifest else "",
        f"status {run.status}",
        f"started {run.manifest['created']}" if "created" in run.manifest else "",
    ]
    verdict = headline(run)
    return tag(
        "header",
        tag("h1", _title(run)),
        tag("div", " · ".join(fact for fact in facts if fact), class_="quiet"),
        tag("p", verdict.sentence, class_=f"verdict {verdict.tone}", role="status"),
    )
