"""Many runs by one command: methods, seeds and settings combined, one folder each, and one table at the end."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.schema import changes, user_path
from ..config.yaml import read_yaml
from ..errors import AksslError, ConfigError, RunDirError, shown
from ..plugins.lookup import methods as installed_methods
from ..plugins.manager import Plugins, installed
from ..reporting.comparison import Summary, compared
from ..rundir.files import json_bytes, write_atomic
from ..rundir.folder import RunDir
from ..running.launch import resume, run
from ..running.layers import check, collect, layer, set_aside
from ..settings import Layers, dotted, merged, sections, table_of
from .grid import Combination, combinations
from .result import FORMAT, Row, Spread, Sweep, row_of

__all__ = ["Combination", "Row", "Spread", "Sweep", "sweep"]

EVERY = "all"
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
        methods: names of methods, or "all" for every one that is installed.
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
    values = {str(path): _listed(str(path), given) for path, given in table_of("varied", varied or {}).items()}
    planned = combinations(_names(methods, plugins), _listed("seeds", seeds), values)
    _refuse_own(common)
    for one in planned:  # mistakes in settings are told before anything is trained
        _refuse_own(dotted(list(one.settings.items())))
        check(layer(collect(None, config, one.keywords(common), plugins), plugins), plugins)
    folder = user_path(out)
    _begin(folder, config, common)
    failed: dict[str, str] = {}
    for number, one in enumerate(planned, 1):
        tell(f"run {number} of {len(planned)}: {one.folder}")
        try:
            _perform(folder / one.folder, one, config, common, plugins, report=report)
        except Exception as error:  # whatever stops one run does not stop the others
            failed[one.folder] = str(error) or type(error).__name__
            tell(f"failed: {one.folder}: {failed[one.folder]}")
    return _finish(folder, planned, failed)


def _names(methods: str | Sequence[str], plugins: Plugins) -> list[str]:
    """The methods by their right names."""
    asked = [methods] if isinstance(methods, str) else _listed("methods", methods)
    if asked == [EVERY]:
        return [one.name for one in installed_methods(plugins=plugins)]
    return [plugins.get("method", name).name for name in asked]


def _listed(name: str, values: Any) -> list[Any]:
    """Values of which each is tried.

    Raises:
        ConfigError: it is one value, not several.
    """
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}: expected a list of values, got {shown(values)}.")
    return list(values)


def _refuse_own(common: Mapping[str, Any]) -> None:
    """Refuse settings that the sweep itself decides, or cannot vary."""
    known = Layers()
    known.put(common)
    devices = known.get("devices") or known.get("train", "devices")
    if devices not in (None, 1):
        raise ConfigError(
            f"devices: {devices} processes are not possible here, where runs follow each other in one process. "
            "Start such runs one by one: akssl run METHOD --devices N."
        )
    for name, instead in {"seed": "seeds", "method": "methods", "overwrite": "another out"}.items():
        if known.get(*((name, "name") if name == "method" else (name,))) is not None:
            raise ConfigError(f"sweep: '{name}' is not for a sweep; use {instead}.")


def _begin(folder: Path, config: Any, common: Mapping[str, Any]) -> None:
    """`sweep.json` holds what all runs have in common; runs that are there were made with the same.

    Raises:
        ConfigError: they were not.
        RunDirError: the folder is something else.
    """
    file = folder / "sweep.json"
    table = config if isinstance(config, Mapping) or config is None else read_yaml(user_path(config))
    named = {key: _named(value) for key, value in common.items() if value is not None}
    asked = json.loads(json.dumps({"config": dict(table or {}), **sections(named)}, default=str))
    if (folder / "config.yaml").is_file() or folder.is_file():
        raise RunDirError(f"out: {folder} is {'a run' if folder.is_dir() else 'a file'}; a sweep needs its own folder.")
    if file.is_file():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))["common"]
            different = [str(change) for change in changes(merged(known), merged(asked))]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RunDirError(f"{file} cannot be read: {error!r}. Choose another --out.") from error
        if different:
            raise ConfigError(
                f"{folder}: this sweep was begun with other settings: {'; '.join(different)}. Put them back (methods, "
                "seeds and values may be added), or choose another --out."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json_bytes({"format": FORMAT, "common": asked}))


def _named(value: Any) -> Any:
    """A Python object by its type, a path by its text."""
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str | int | float | list | tuple | Mapping) else f"a {type(value).__name__}"


def _perform(
    path: Path, one: Combination, config: Any, common: Mapping[str, Any], plugins: Plugins, *, report: bool
) -> None:
    """Bring one run to its end, from wherever it stands."""
    if not any((path / name).is_file() for name in ("manifest.json", "config.yaml")):
        given = one.keywords(_own_backbone(common))
        run(config=config, out=path, report=report, plugins=plugins, **given)
        return
    folder = RunDir.open(path)
    if not folder.begun or not folder.manifest.final:
        _, objects = set_aside(common)
        resume(path, report=report, plugins=plugins, **_own_backbone(objects))


def _own_backbone(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a copy of the backbone, which each run trains for itself."""
    return {key: copy.deepcopy(value) if key == "backbone" else value for key, value in settings.items()}


def _finish(folder: Path, planned: Sequence[Combination], failed: dict[str, str]) -> Sweep:
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
    found = Sweep(folder, tuple(rows), failed, tuple(runs))
    page = compared(found.runs).page(f"Sweep {folder.resolve().name}", first=[found.section()])
    write_atomic(folder / "results.md", found.markdown.encode())
    write_atomic(folder / "results.json", json_bytes(found.record()))
    write_atomic(folder / "compare.html", page.encode())
    return found
