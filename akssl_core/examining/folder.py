"""Rules about a run's folder: how it ended, what its rows say, and what is missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from ..metrics import diagnose
from .base import Folder, Found, rule

ENOUGH_ROWS = 8
LOAD, EVALUATE = 0.3, 0.5  # shares of the time
BASELINE_MARGIN = 2.0  # points; the standard error of a k-NN score over 1000 queries is up to 1.6
WRITTEN_AT_THE_END = ("backbone.safetensors", "samples.safetensors")
ALWAYS = ("config.yaml", "provenance.json", "metrics.jsonl", "checkpoints")
MATTERS = ("akssl-core", "torch", "torchvision")


def _column(found: Folder, name: str) -> list[float]:
    """The finite values of a column of the rows."""
    return [value for _, value in found.run.column(name) if math.isfinite(value)]


def _ended(found: Folder) -> bool:
    return found.run.status in ("finished", "collapsed")


@rule(
    "run",
    cause="its process ended without a word: it was killed, or the machine went down.",
    cure="go on with: akssl resume RUN_DIR.",
)
def killed(found: Folder) -> Found:
    """A run that says it is running while no process holds its folder."""
    gone = found.run.status == "running" and not found.folder.in_use
    return f"status running since {found.run.manifest.get('updated', '?')}, and no process is at it." if gone else None


@rule("run", cause="the message says it.", cure="mend what it names, then: akssl resume RUN_DIR.")
def failed(found: Folder) -> Found:
    """A run that failed."""
    return f"status failed: {found.run.manifest.get('error', '?')}" if found.run.status == "failed" else None


@rule("run", cause="it was asked to.", cure="go on with: akssl resume RUN_DIR.")
def stopped(found: Folder) -> Found:
    """A run that was stopped before its end."""
    return f"status stopped: {found.run.manifest.get('error', '?')}" if found.run.status == "stopped" else None


@rule(
    "run",
    cause="features or projections have become alike, or no gradient reaches the backbone.",
    cure="that of the landmark it is at; --stop-on-collapse ends such a run early.",
)
def collapsed_or_stuck(found: Folder) -> Found:
    """A run that has collapsed or does not learn, by its own diagnosis or by its rows."""
    told: Mapping[str, Any] = found.run.manifest.get("diagnosis") or {}
    if told.get("evidence"):
        return f"{told['verdict']}: {told['evidence']}", str(told["cause"]), str(told["cure"])
    seen = diagnose(found.run.rows, scores=found.run.final)
    if seen.evidence:
        return f"{seen.verdict}: {seen.evidence}", seen.cause, seen.cure
    return "its status is collapsed." if found.run.status == "collapsed" else None


@rule(
    "run",
    cause="steps are too large, or a number overflows at this precision.",
    cure="lower optimizer.lr, set train.clip, or use --precision fp32.",
)
def not_a_number(found: Folder) -> Found:
    """Rows with a term that is not a finite number."""
    bad = [(row["step"], name) for row in found.run.rows for name, value in row.items() if value is None]
    return f"{bad[0][1]} of step {bad[0][0]}, and {len(bad) - 1} more." if bad else None


@rule(
    "run",
    cause="a disk fault, or a copy that was cut short.",
    cure="delete that checkpoint's folder; akssl resume goes on from the newest one that is whole.",
)
def damaged_checkpoint(found: Folder) -> Found:
    """Checkpoints whose files are not as they were written."""
    return "; ".join(found.folder.damaged()) or None


@rule("run", cause="it ended before its first one, or they were deleted.", cure="start again, or put them back.")
def no_checkpoint(found: Folder) -> Found:
    """A run that cannot be gone on with."""
    return "no checkpoint." if found.run.rows and not found.folder.checkpoints() else None


@rule("run", cause="they were deleted, or not copied along.", cure="put them back, or run it again from config.yaml.")
def missing_files(found: Folder) -> Found:
    """Files that a run at this point has written, and that are not there."""
    names = (*ALWAYS, *(WRITTEN_AT_THE_END if _ended(found) else ()))
    missing = [name for name in names if not (found.run.path / name).exists()]
    return f"{', '.join(missing)}." if missing else None


@rule(
    "run", cause="a line was changed or cut.", cure="leave it: rows are for reading alone, and a resume rewrites them."
)
def damaged_rows(found: Folder) -> Found:
    """A metrics file with lines that cannot be read."""
    file = found.run.path / "metrics.jsonl"
    lines = len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0
    return f"{len(found.run.rows)} of {lines} lines can be read." if lines > len(found.run.rows) else None


@rule(
    "run",
    cause="what it learns is not what the labels ask for, or it trained too little.",
    cure="train longer, or try the method's default recipe and milder views.",
)
def below_a_baseline(found: Folder) -> Found:
    """A final k-NN accuracy that does not beat raw pixels and the untrained backbone."""
    final = found.run.final
    known = {name: final[name] for name in ("knn_raw_pixels", "knn_random_init") if name in final}
    score = final.get("knn_top1")
    if score is None or not known or score >= max(known.values()) + BASELINE_MARGIN:
        return None
    name = max(known, key=lambda key: known[key])
    return f"knn_top1 {score:.1f} %, {name} {known[name]:.1f} %."


@rule(
    "run",
    cause="the learning rate is too low by then, or the data has no more to teach.",
    cure="stop earlier, raise optimizer.lr, or use more images.",
)
def plateau(found: Folder) -> Found:
    """A second half of the run that brought nothing: neither a lower loss nor a higher accuracy."""
    loss, score = _column(found, "loss"), _column(found, "knn_top1")
    healthy = found.run.status == "finished" and found.run.manifest.get("verdict", "healthy") == "healthy"
    if len(loss) < ENOUGH_ROWS or not healthy:
        return None
    if len(score) >= 4:
        half = len(score) // 2
        early, late = max(score[:half]), max(score[half:])
        return (
            f"best k-NN accuracy {early:.1f} % in the first half, {late:.1f} % after." if late < early + 0.5 else None
        )
    third = len(loss) // 3
    first, middle, last = (statistics.mean(part) for part in (loss[:third], loss[third : 2 * third], loss[-third:]))
    flat = middle - last < 0.02 * abs(first - middle) or first <= last
    return f"mean loss {first:.4g}, {middle:.4g} and {last:.4g} in the thirds of the run." if flat else None


@rule("run", cause="steps are too large.", cure="lower optimizer.lr, or warm up longer.")
def loss_rises(found: Folder) -> Found:
    """A loss that ends clearly above its lowest."""
    loss = _column(found, "loss")
    if len(loss) < ENOUGH_ROWS:
        return None
    low, high, end = min(loss), max(loss), statistics.median(loss[-3:])
    return f"it was {low:.4g} and ends at {end:.4g}." if end - low > 0.5 * (high - low) > 0.01 * abs(high) else None


@rule(
    "run",
    cause="features give up directions that they had.",
    cure="stop where RankMe was highest, or use weaker weight decay.",
)
def rank_falls(found: Folder) -> Found:
    """An effective rank that ends below half of its highest."""
    ranks = _column(found, "rankme")
    return (
        f"RankMe was {max(ranks):.4g} and ends at {ranks[-1]:.4g}."
        if len(ranks) > 2 and ranks[-1] < max(ranks) / 2
        else None
    )


@rule(
    "run",
    cause="the device waits for images: they are decoded or read too slowly.",
    cure="decode them once with 'akssl data prepare SRC --out FILE', or use --workers with a torch Dataset.",
)
def slow_loading(found: Folder) -> Found:
    """More than 30 % of the time spent on waiting for images."""
    shares = _column(found, "time_load")[1:]
    mean = statistics.mean(shares) if shares else 0.0
    return f"time_load is {100 * mean:.0f} % of the time between rows." if mean > LOAD else None


@rule("run", cause="probes are frequent or large.", cure="raise evaluate.every, or lower evaluate.online_bank.")
def slow_probes(found: Folder) -> Found:
    """More than half of the time spent on probes and checkpoints."""
    shares = [float(row.get("time_evaluate") or 0.0) for row in found.run.rows][1:]
    mean = statistics.mean(shares) if len(shares) >= ENOUGH_ROWS else 0.0
    return f"time_evaluate is {100 * mean:.0f} % of the time between rows." if mean > EVALUATE else None


@rule("run", cause="files that cannot be read were left out.", cure="see unreadable.txt; remove or convert them.")
def unreadable_files(found: Folder) -> Found:
    """Images that the run could not read."""
    names = found.run.unreadable
    return f"{len(names)} files, {names[0].partition(chr(9))[0]} for one." if names else None


@rule(
    "run",
    cause="another version may compute other numbers, so that a resumed run is not the one that began.",
    cure="install the versions of the manifest before a resume; reading and exporting are safe.",
)
def other_versions(found: Folder) -> Found:
    """Versions of torch, torchvision or akssl-core other than those that are installed."""
    then: Mapping[str, str] = found.run.manifest.get("versions", {})
    other = [
        f"{name} {then[name]}, here {found.versions.get(name, 'none')}"
        for name in MATTERS
        if name in then and then[name] != found.versions.get(name)
    ]
    return f"{'; '.join(other)}." if other else None
