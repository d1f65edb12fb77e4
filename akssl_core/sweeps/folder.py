"""The folder of many runs: what they have in common is begun with once, and each run is brought to its end."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.schema import changes, user_path
from ..config.yaml import read_yaml
from ..errors import ConfigError, RunDirError, shown
from ..plugins.lookup import methods as installed_methods
from ..plugins.manager import Plugins
from ..rundir.files import json_bytes, write_atomic
from ..rundir.folder import RunDir
from ..running.launch import resume, run
from ..running.layers import collect, set_aside
from ..running.plan import Plan, make_plan
from ..settings import Given, Layers, dotted, merged, sections
from .grid import Combination
from .result import FORMAT

EVERY = "all"


def asked(methods: str | Sequence[str], plugins: Plugins) -> tuple[list[str], bool]:
    """The methods by their right names, and whether "all" was asked for."""
    given = [methods] if isinstance(methods, str) else listed("methods", methods)
    if len(given) == 1 and given[0] == EVERY:
        return [one.name for one in installed_methods(plugins=plugins)], True
    return [plugins.get("method", name).name for name in given], False


def plan_of(one: Combination, config: Any, common: Mapping[str, Any], plugins: Plugins) -> tuple[Given, Plan]:
    """What is given to a combination, and its plan.

    Raises:
        AksslError: it cannot be trained.
    """
    refuse_own(dotted(list(one.settings.items())))
    given = collect(None, config, one.keywords(common), plugins)
    return given, make_plan(given, plugins)


def none_can(left_out: Mapping[str, str]) -> ConfigError:
    """What is said where every method was left out: the reason that most of them have."""
    return ConfigError(f"methods: none can be trained. {Counter(left_out.values()).most_common(1)[0][0]}")


def listed(name: str, values: Any) -> list[Any]:
    """Values of which each is tried.

    Raises:
        ConfigError: it is one value, not several.
    """
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}: expected a list of values, got {shown(values)}.")
    return list(values)


def refuse_own(common: Mapping[str, Any]) -> None:
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


def begin(folder: Path, config: Any, common: Mapping[str, Any], **more: Any) -> None:
    """`sweep.json` holds what all runs have in common, and more; runs that are there were made with the same.

    Raises:
        ConfigError: they were not.
        RunDirError: the folder is something else.
    """
    file = folder / "sweep.json"
    table = config if isinstance(config, Mapping) or config is None else read_yaml(user_path(config))
    named = {key: _named(value) for key, value in common.items() if value is not None}
    asked = json.loads(json.dumps({"config": dict(table or {}), **sections(named), **more}, default=str))
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


def perform(
    path: Path, one: Combination, config: Any, common: Mapping[str, Any], plugins: Plugins, *, report: bool
) -> None:
    """Bring one run to its end, from wherever it stands."""
    if not begun(path):
        given = one.keywords(_own_backbone(common))
        run(config=config, out=path, report=report, plugins=plugins, **given)
        return
    folder = RunDir.open(path)
    if not folder.begun or not folder.manifest.final:
        _, objects = set_aside(common)
        resume(path, report=report, plugins=plugins, **_own_backbone(objects))


def begun(path: Path) -> bool:
    """Whether the folder holds a run."""
    return any((path / name).is_file() for name in ("manifest.json", "config.yaml"))


def _own_backbone(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a copy of the backbone, which each run trains for itself."""
    return {key: copy.deepcopy(value) if key == "backbone" else value for key, value in settings.items()}
