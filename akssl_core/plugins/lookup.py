"""Small questions to the registry: what is installed, and one component alone for a loop of your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.schema import validate
from ..method import Method
from .manager import Plugins, installed


@dataclass(frozen=True, slots=True)
class Installed:
    """An installed method."""

    name: str
    """The name that users type."""
    summary: str
    """The first line of the method's docstring."""
    paper: str
    """Authors, year and link."""
    recipes: tuple[str, ...]
    """The recipes it brings, by name."""
    distribution: str
    """The package that it comes from."""
    version: str
    """The version of that package."""


def methods(*, plugins: Plugins | None = None) -> list[Installed]:
    """Every method that is installed and loads, sorted by name."""
    plugins = plugins or installed()
    plugins.load_all()
    return [_record(plugins, component, owner) for component, owner in plugins.registry.components("method")]


def _record(plugins: Plugins, component: Any, owner: str) -> Installed:
    assert issubclass(component, Method)
    entry = next((e for e in plugins.entries if e.name == owner), None)
    summary = (component.__doc__ or "").partition("\n")[0]
    return Installed(
        name=component.name,
        summary=summary,
        paper=component.paper,
        recipes=tuple(component.recipes),
        distribution=entry.distribution if entry else owner,
        version=entry.version if entry else "",
    )


def build(kind: str, name: str, *args: Any, plugins: Plugins | None = None, **settings: Any) -> Any:
    """One component by kind and name with its settings: `build("loss", "ntxent", temperature=0.5)`.

    `args` are what the component takes beside its settings: an ImageSpec for a backbone or an augmentation, a
    Backbone for a method.

    Raises:
        PluginError: no such component is installed (with the package to install, or the nearest name).
        ConfigError: a setting is unknown or out of range.
    """
    plugins = plugins or installed()
    component: Any = plugins.get(kind, name)
    return component(validate(component.Config, settings, registry=plugins), *args)
