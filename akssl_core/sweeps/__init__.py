"""Many runs by one command: methods, seeds and settings combined, one folder each, and one table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.schema import user_path
from ..errors import AksslError
from ..plugins.manager import Plugins, installed
from ..reporting.comparison import Summary, compared
from ..rundir.files import json_bytes, write_atomic
from ..running.layers import check, collect, layer
from ..settings import dotted, table_of
from .choosing import Chosen, Trial, choose
from .folder import asked, begin, begun, listed, none_can, perform, plan_of, refuse_own
from .grid import Combination, combinations
from .result import Row, Spread, Sweep, row_of

__all__ = ["Chosen", "Combination", "Row", "Spread", "Sweep", "Trial", "choose", "sweep"]

Tell = Callable[[str], None]


def sweep(
    methods: str | Sequence[str],
    *,
    out: str | Path,
    seeds: Sequence[int] = (0,),
    varied: Mapping[str, Sequence[Any]] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    report: bool = True,
    plugins: Plugins | None = None,
    tell: Tell = lambda text: None,
    **common: Any,
) -> Sweep:
    """Train every combination of methods, seeds and settings, one run folder each under `out`.

    What is there already counts: finished runs are read, stopped ones resumed, failed ones tried again. A run that
    fails is reported and the others go on. `out` gets results.md, results.json and compare.html.

    Args:
        methods: names of methods, or "all" for every one that is installed and needs nothing but images.
        out: the folder of the sweep.
        seeds: each combination is run with each.
        varied: settings by dotted path with the values to try: {"optimizer.lr": [0.1, 0.3]}.
        config: as for `run`, for all runs.
        report: write report.html of each run.
        plugins: another plugin manager than the process-wide one.
        tell: called with a line when a run begins or has failed.
        **common: any other keyword of `run`, the same for all runs.

    Raises:
        AksslError: a setting is wrong, or `out` holds a sweep with other settings; nothing has been trained then.
    """
    plugins = plugins or installed()
    values = {str(path): listed(str(path), given) for path, given in table_of("varied", varied or {}).items()}
    named, every = asked(methods, plugins)
    planned = combinations(named, listed("seeds", seeds), values)
    refuse_own(common)
    for one in planned:  # mistakes in settings are told before anything is trained
        refuse_own(dotted(list(one.settings.items())))
        check(layer(collect(None, config, one.keywords(common), plugins), plugins), plugins)
    folder, left_out = user_path(out), dict[str, str]()
    for one in planned if every else ():
        if one.seed == planned[0].seed and not begun(folder / one.folder):
            try:
                plan_of(one, config, common, plugins)
            except Exception as error:  # a faulty method does not stop the others
                left_out[one.name] = str(error) or type(error).__name__
                tell(f"left out: {one.name}: {left_out[one.name]}")
    planned = [one for one in planned if one.name not in left_out or begun(folder / one.folder)]
    if not planned:
        raise none_can(left_out)
    begin(folder, config, common)
    failed: dict[str, str] = {}
    for number, one in enumerate(planned, 1):
        tell(f"run {number} of {len(planned)}: {one.folder}")
        try:
            perform(folder / one.folder, one, config, common, plugins, report=report)
        except Exception as error:  # whatever stops one run does not stop the others
            failed[one.folder] = str(error) or type(error).__name__
            tell(f"failed: {one.folder}: {failed[one.folder]}")
    return _finish(folder, planned, failed, left_out)


def _finish(folder: Path, planned: Sequence[Combination], failed: dict[str, str], left_out: Mapping[str, str]) -> Sweep:
    """The table of what has ended, and the files that hold it."""
    groups: dict[str, list[tuple[Combination, Summary]]] = {}
    runs = []
    for one in planned:
        if one.folder in failed:
            continue
        try:
            summary = Summary.read(folder / one.folder, one.folder)
        except AksslError as error:
            failed[one.folder] = str(error)
            continue
        runs.append(summary.path)
        key = json.dumps([one.method, one.settings], sort_keys=True, default=str)
        groups.setdefault(key, []).append((one, summary))
    rows = sorted((row_of(members) for members in groups.values()), key=lambda row: row.rank)
    found = Sweep(folder, tuple(rows), failed, tuple(runs), left_out)
    page = compared(found.runs).page(f"Sweep {folder.resolve().name}", first=[found.section()])
    write_atomic(folder / "results.md", found.markdown.encode())
    write_atomic(folder / "results.json", json_bytes(found.record()))
    write_atomic(folder / "compare.html", page.encode())
    return found
