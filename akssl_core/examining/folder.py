"""Rules about a run's folder: how it ended, what its rows say, and what is missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from contextlib import suppress

from ..config.schema import leaves
from ..errors import RunDirError
from ..metrics.diagnosis import GAIN_MORE, NO_GAIN
from ..rundir.files import read_tensors
from .base import Evidence, FinishedRun, after_run

ENOUGH_ROWS = 8
SHOWN = 5  # settings that a finding names
LOAD, EVALUATE = 0.3, 0.5  # shares of the time
WRITTEN_AT_THE_END = ("backbone.safetensors", "samples.safetensors")
ALWAYS = ("config.yaml", "provenance.json", "metrics.jsonl", "checkpoints")
MATTERS = ("akssl-core", "torch", "torchvision")


def _column(run: FinishedRun, name: str) -> list[float]:
    """The finite values of a column of the rows."""
    return [value for _, value in run.files.column(name) if math.isfinite(value)]


def _judged(run: FinishedRun) -> Evidence:
    """The run's own verdict as a finding."""
    found = run.files.diagnosis
    return f"{found.words}: {found.evidence}", found.cause, found.cure


@after_run(
    cause="its process ended without a word: it was killed, or the machine went down.",
    cure="go on with: akssl resume RUN_DIR.",
)
def killed(run: FinishedRun) -> Evidence:
    """A run that says it is running while no process holds its folder."""
    gone = run.files.status == "running" and not run.folder.in_use
    return f"status running since {run.files.manifest.get('updated', '?')}, and no process is at it." if gone else None


@after_run(cause="the message says it.", cure="mend what it names, then: akssl resume RUN_DIR.")
def failed(run: FinishedRun) -> Evidence:
    """A run that failed."""
    return f"status failed: {run.files.manifest.get('error', '?')}" if run.files.status == "failed" else None


@after_run(cause="it was asked to.", cure="go on with: akssl resume RUN_DIR.")
def stopped(run: FinishedRun) -> Evidence:
    """A run that was stopped before its end."""
    return f"status stopped: {run.files.manifest.get('error', '?')}" if run.files.status == "stopped" else None


@after_run(
    cause="features or projections have become alike, or no gradient reaches the backbone.",
    cure="that of the landmark it is at; --stop-on-collapse ends such a run early.",
)
def collapsed_or_stuck(run: FinishedRun) -> Evidence:
    """A run that has collapsed or does not learn, by its own diagnosis or by its rows."""
    return _judged(run) if run.files.diagnosis.verdict != "healthy" else None


@after_run(
    cause="steps are too large, or a number overflows at this precision.",
    cure="lower optimizer.lr, set train.clip, or use --precision fp32.",
)
def not_a_number(run: FinishedRun) -> Evidence:
    """Rows with a term that is not a finite number."""
    bad = [(row["step"], name) for row in run.files.rows for name, value in row.items() if value is None]
    return f"{bad[0][1]} of step {bad[0][0]}, and {len(bad) - 1} more." if bad else None


@after_run(
    cause="a disk fault, or a copy that was cut short.",
    cure="delete that checkpoint's folder; akssl resume goes on from the newest one that is whole.",
)
def damaged_checkpoint(run: FinishedRun) -> Evidence:
    """Checkpoints whose files are not as they were written."""
    return "; ".join(run.folder.damaged()) or None


@after_run(
    cause="a disk fault, or a copy that was cut short.",
    cure="delete the file: akssl resume RUN_DIR then writes it again from the last checkpoint.",
)
def damaged_backbone(run: FinishedRun) -> Evidence:
    """A trained backbone that cannot be read."""
    try:
        if run.files.has_backbone:
            read_tensors(run.files.path / WRITTEN_AT_THE_END[0])
    except RunDirError as error:
        return str(error)
    return None


@after_run(
    cause="config.yaml was edited, or a copy of it was cut short.",
    cure="put them back as in `settings` of the last checkpoint's state.json.",
)
def lost_settings(run: FinishedRun) -> Evidence:
    """Settings that the last checkpoint was saved with and that config.yaml does not have."""
    with suppress(RunDirError):
        checkpoint, _ = run.folder.latest()
        kept = dict(leaves(run.files.config))
        lost = [path for path, _ in leaves(checkpoint.state.settings) if path not in kept] if checkpoint else []
        return f"{', '.join(lost[:SHOWN])}{', ...' if len(lost) > SHOWN else ''}." if lost else None
    return None


@after_run(cause="it ended before its first one, or they were deleted.", cure="start again, or put them back.")
def no_checkpoint(run: FinishedRun) -> Evidence:
    """A run that cannot be gone on with."""
    return "no checkpoint." if run.files.rows and not run.folder.checkpoints() else None


@after_run(cause="they were deleted, or not copied along.", cure="put them back, or run it again from config.yaml.")
def missing_files(run: FinishedRun) -> Evidence:
    """Files that a run at this point has written, and that are not there."""
    began = ("start.safetensors",) if run.files.rows and run.files.setting("start.source") else ()
    names = (*ALWAYS, *began, *(WRITTEN_AT_THE_END if run.files.status in ("finished", "collapsed") else ()))
    missing = [name for name in names if not (run.files.path / name).exists()]
    return f"{', '.join(missing)}." if missing else None


@after_run(
    cause="it was changed, or cut short.",
    cure="leave it: rows are for reading alone, and a resume writes them and the manifest again.",
)
def damaged_rows(run: FinishedRun) -> Evidence:
    """Rows that cannot be read or are gone, or a manifest without a word on how the run went."""
    return f"{'; '.join(run.files.damage)}." if run.files.damage else None


@after_run(cause=NO_GAIN, cure=GAIN_MORE)
def below_a_baseline(run: FinishedRun) -> Evidence:
    """A final k-NN accuracy that does not clearly beat raw pixels, the untrained backbone and the start."""
    return _judged(run) if run.files.diagnosis.verdict == "healthy" and run.files.diagnosis.cause else None


@after_run(
    cause="the learning rate is too low by then, or the data has no more to teach.",
    cure="stop earlier, raise optimizer.lr, or use more images.",
)
def plateau(run: FinishedRun) -> Evidence:
    """A second half of the run that brought nothing: neither a lower loss nor a higher accuracy."""
    loss, score = _column(run, "loss"), _column(run, "knn_top1")
    healthy = run.files.status == "finished" and run.files.diagnosis.verdict == "healthy"
    if len(loss) < ENOUGH_ROWS or not healthy:
        return None
    if len(score) >= 4:
        half = len(score) // 2
        early, late = max(score[:half]), max(score[half:])
        said = f"best k-NN accuracy {early:.1f} % in the first half, {late:.1f} % after."
        return said if late < early + 0.5 else None
    third = len(loss) // 3
    first, middle, last = (statistics.mean(part) for part in (loss[:third], loss[third : 2 * third], loss[-third:]))
    flat = middle - last < 0.02 * abs(first - middle) or first <= last
    return f"mean loss {first:.4g}, {middle:.4g} and {last:.4g} in the thirds of the run." if flat else None


@after_run(cause="steps are too large.", cure="lower optimizer.lr, or warm up longer.")
def loss_rises(run: FinishedRun) -> Evidence:
    """A loss that ends clearly above its lowest."""
    loss = _column(run, "loss")
    if len(loss) < ENOUGH_ROWS:
        return None
    low, high, end = min(loss), max(loss), statistics.median(loss[-3:])
    return f"it was {low:.4g} and ends at {end:.4g}." if end - low > 0.5 * (high - low) > 0.01 * abs(high) else None


@after_run(
    cause="features give up directions that they had.",
    cure="stop where RankMe was highest, or use weaker weight decay.",
)
def rank_falls(run: FinishedRun) -> Evidence:
    """An effective rank that ends below half of its highest."""
    ranks = _column(run, "rankme")
    fallen = len(ranks) > 2 and ranks[-1] < max(ranks) / 2
    return f"RankMe was {max(ranks):.4g} and ends at {ranks[-1]:.4g}." if fallen else None


@after_run(
    cause="the device waits for images: they are decoded or read too slowly.",
    cure="decode them once with 'akssl data prepare SRC --out FILE', or use more --workers.",
)
def slow_loading(run: FinishedRun) -> Evidence:
    """More than 30 % of the time spent on waiting for images."""
    shares = _column(run, "time_load")[1:]
    mean = statistics.mean(shares) if shares else 0.0
    return f"time_load is {100 * mean:.0f} % of the time between rows." if mean > LOAD else None


@after_run(cause="probes are frequent or large.", cure="raise evaluate.every, or lower evaluate.online_bank.")
def slow_probes(run: FinishedRun) -> Evidence:
    """More than half of the time spent on probes and checkpoints."""
    shares = [float(row.get("time_evaluate") or 0.0) for row in run.files.rows][1:]
    mean = statistics.mean(shares) if len(shares) >= ENOUGH_ROWS else 0.0
    return f"time_evaluate is {100 * mean:.0f} % of the time between rows." if mean > EVALUATE else None


@after_run(cause="files that cannot be read were left out.", cure="see unreadable.txt; remove or convert them.")
def unreadable_files(run: FinishedRun) -> Evidence:
    """Images that the run could not read."""
    names = run.files.unreadable
    return f"{len(names)} files, {names[0].partition(chr(9))[0]} for one." if names else None


@after_run(
    cause="another version may compute other numbers, so that a resumed run is not the one that began.",
    cure="install the versions of the manifest before a resume; reading and exporting are safe.",
)
def other_versions(run: FinishedRun) -> Evidence:
    """Versions of torch, torchvision or akssl-core other than those that are installed."""
    then: Mapping[str, str] = run.files.manifest.get("versions", {})
    other = [
        f"{name} {then[name]}, here {run.versions.get(name, 'none')}"
        for name in MATTERS
        if name in then and then[name] != run.versions.get(name)
    ]
    return f"{'; '.join(other)}." if other else None
