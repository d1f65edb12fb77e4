"""From what a user gave to a complete configuration, with the origin of every value.

Layers, later ones win: core defaults < the method's recipe < config file < keywords or flags. What nobody
decided is then filled by rules that look at the data and the hardware, each with its reason.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.registry import STAND_IN
from ..config.schema import (
    leaves,
    validate,
)
from ..config.yaml import read_yaml
from ..data import DEFAULT_SOURCE
from ..data.opening import name_data
from ..errors import ConfigError, did_you_mean, plain
from ..method import Method
from ..plugins.manager import Plugins
from ..settings import COMPONENTS, Given, RunSpec, sections

CORE = "core default"  # the origin of what the core decides for every run
CORE_DEFAULTS: Mapping[str, Any] = {
    "augmentation": {"name": "pair"},
    "optimizer": {"name": "sgd"},
    "data": {"name": DEFAULT_SOURCE},
    "seed": 0,
}


@dataclass
class Layers:
    """Settings laid over each other, each leaf with who set it."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def put(self, settings: Mapping[str, Any], who: str) -> None:
        """Lay settings over those that are there."""
        self._merge(self.values, settings, (), who)

    def set(self, path: Sequence[str], value: Any, who: str) -> None:
        """Set one value."""
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        self.put(nested, who)

    def get(self, *path: str) -> Any:
        """One value, or None where nothing was set."""
        here: Any = self.values
        for key in path:
            here = here.get(key) if isinstance(here, Mapping) else None
        return here

    def set_by_user(self, *path: str) -> bool:
        """Whether a keyword, a flag or a config file set this value or one below it."""
        name = ".".join(path)
        origins = [who for key, who in self.origin.items() if key == name or key.startswith(name + ".")]
        return any(not who.startswith((CORE, "recipe ", "rule: ")) for who in origins)

    def _merge(self, base: dict[str, Any], new: Mapping[str, Any], path: tuple[str, ...], who: str) -> None:
        for key, value in new.items():
            here = (*path, key)
            if isinstance(value, str) and here[0] in COMPONENTS and len(here) == 1:
                value = {"name": value}
            old = base.get(key)
            if here == ("optimizer", "lr") and isinstance(old, dict) and isinstance(value, int | float):
                value = {"start": value}  # a number is the peak; the recipe's warm-up and decay stay
            if isinstance(value, Mapping):
                if not isinstance(old, dict) or _other_component(old, value):
                    self._forget(here)
                    base[key] = old = {}
                self._merge(old, value, here, who)
            else:
                self._forget(here)
                base[key] = copy.deepcopy(value)
                self.origin[".".join(here)] = who

    def _forget(self, path: tuple[str, ...]) -> None:
        """A replaced value takes its origins with it (no LARS settings left over under AdamW)."""
        name = ".".join(path)
        for key in [k for k in self.origin if k == name or k.startswith(name + ".")]:
            del self.origin[key]


def _other_component(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both name a component and the names differ."""
    names = old.get("name"), new.get("name")
    return isinstance(names[0], str) and isinstance(names[1], str) and plain(names[0]) != plain(names[1])


def collect(
    method: str | Mapping[str, Any] | None,
    config: Path | str | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    plugins: Plugins,
    *,
    who: str = "user",
) -> Given:
    """Config file and keywords as layers; objects that have no name are set aside."""
    given = {key: value for key, value in settings.items() if value is not None}
    objects: dict[str, Any] = {}
    for key in ("data", "backbone", "augmentation"):
        if key in given and not isinstance(given[key], str | Mapping | Path):
            objects[key] = given[key]
            given[key] = {"name": STAND_IN, "type": type(given[key]).__name__}
    if method is not None:
        given["method"] = method
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if config is not None:
        table = config if isinstance(config, Mapping) else read_yaml(Path(config))
        origin = "config" if isinstance(config, Mapping) else f"config file {Path(config).name}"
        layers.append((origin, name_data(sections(table), plugins)))
    layers.append((who, name_data(sections(given), plugins)))
    return Given(layers, objects)


def layer(given: Given, plugins: Plugins) -> Layers:
    """All layers merged: core defaults, recipe, config file, keywords.

    Raises:
        ConfigError: no method was named, or the recipe is unknown.
    """
    user = Layers()
    for who, settings in given.layers:
        user.put(settings, who)
    name = user.get("method", "name")
    if not isinstance(name, str):
        installed = ", ".join(plugins.names("method")) or "none"
        raise ConfigError(f"method: none was named. Installed: {installed}.")
    method = plugins.get("method", name)
    assert issubclass(method, Method)
    recipe, reason = _recipe(method, user, plugins)
    layers = Layers()
    layers.put(CORE_DEFAULTS, CORE)
    layers.put(method.recipes.get(recipe, {}), f"recipe '{recipe}' of {method.name}")
    for who, settings in given.layers:
        layers.put(settings, who)
    layers.set(["recipe"], recipe, reason)
    layers.values["method"]["name"] = method.name
    return layers


def _recipe(method: type[Method], user: Layers, plugins: Plugins) -> tuple[str, str]:
    """Which recipe of the method applies, and why."""
    asked = user.get("recipe")
    if asked is not None:
        if asked not in method.recipes:
            known, hint = ", ".join(method.recipes) or "none", did_you_mean(str(asked), method.recipes)
            raise ConfigError(f"recipe: {method.name} has no recipe '{asked}'.{hint} Known: {known}.")
        return asked, user.origin["recipe"]
    source = user.get("data", "name")
    family = plugins.get("data", source).family if isinstance(source, str) else None  # type: ignore[attr-defined]
    if isinstance(family, str) and family in method.recipes:
        return family, f"rule: {source} is {family} data"
    return "default", CORE


def check(layers: Layers, plugins: Plugins) -> RunSpec:
    """The merged settings, validated against the schema of every component."""
    return validate(RunSpec, layers.values, registry=plugins)


def provenance(spec: RunSpec, layers: Layers) -> dict[str, str]:
    """Who decided each value of the resolved run; what nobody touched is its schema's default."""
    return {path: _origin(path, layers.origin) for path, _ in leaves(spec.table())}


def _origin(path: str, origin: Mapping[str, str]) -> str:
    """The origin of a leaf: its own, that of a table above it, or (a number for a schedule) of its start."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if found := origin.get(".".join(parts[:end])):
            return found
    return origin.get(path + ".start", "default")
