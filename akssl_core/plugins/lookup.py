"""Questions to the registry: what is installed, where it is written, and one component alone for a loop of your own."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ..config import describe
from ..config.registry import ALIASES
from ..config.schema import validate
from ..config.yaml import dump_yaml
from ..errors import ConfigError
from ..method import Method
from .installed import version
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
    text: str = field(repr=False)
    """Its page, as `akssl plugins show` prints it: what it is, paper, views, settings and recipes."""


def methods(*, plugins: Plugins | None = None) -> list[Installed]:
    """Every method that is installed and loads, sorted by name."""
    plugins = plugins or installed()
    plugins.load_all()
    found = []
    for component, owner in plugins.registry.components("method"):
        assert issubclass(component, Method)
        summary, recipes = (component.__doc__ or "").partition("\n")[0], tuple(component.recipes)
        entry = next((e for e in plugins.entries if e.name == owner), None)
        package = (entry.distribution, entry.version) if entry else (owner, "")
        found.append(Installed(component.name, summary, component.paper, recipes, *package, page(component)))
    return found


def page(method: Any) -> str:
    """A method's page: what it is, its paper, views, settings and recipes."""
    views = ", ".join(f"{describe.count(many)} {group}" for group, many in method.views.items())
    parts = [f"{method.name}: {(method.__doc__ or '').strip()}"]
    parts += [f"Paper: {method.paper}"] if method.paper else []
    parts += [f"Views: {views}", "Settings (--set method.NAME=VALUE):"]
    parts += [describe.table(describe.HEADER, describe.cells(method.Config))]
    for recipe, settings in method.recipes.items():
        parts.append(f"Recipe '{recipe}':\n" + dump_yaml(dict(settings)).rstrip())
    return "\n\n".join(parts)


def build(kind: str, name: str, *args: Any, plugins: Plugins | None = None, **settings: Any) -> Any:
    """One component by kind and name with its settings: `build("loss", "ntxent", temperature=0.5)`.

    `args` are what the component takes beside its settings: an ImageSpec for a backbone or an augmentation, a
    Backbone for a method.

    Raises:
        PluginError: no such component is installed (with the package to install, or the nearest name).
        ConfigError: a setting is unknown or out of range, or `args` are not what the component takes.
    """
    plugins = plugins or installed()
    component: Any = plugins.get(kind, name)
    config = validate(component.Config, settings, registry=plugins)
    try:
        inspect.signature(component).bind(config, *args)
    except TypeError as error:
        raise ConfigError(f"build: {kind} '{name}' takes more than its settings, or less: {error}.") from error
    return component(config, *args)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a component is written, and who provides it."""

    module: str
    """The module that its class is written in."""
    file: str
    """The path of that module's source."""
    line: int
    """The line at which the class begins."""
    plugin: str
    """The distribution that brings it."""
    version: str
    """The version of that distribution."""

    @property
    def text(self) -> str:
        """A line for each of these, as `akssl find` prints it."""
        return describe.table(("", ""), [(key, str(value)) for key, value in asdict(self).items()]).lstrip("\n")


def find(kind: str, name: str, *, plugins: Plugins | None = None) -> Location:
    """Where a component is written, by kind and name: `find("loss", "ntxent")`.

    Raises:
        ConfigError: there is no such kind.
        PluginError: there is no such component.
    """
    plugins, kind = plugins or installed(), ALIASES.get(str(kind), kind)
    component = plugins.get(kind, name)
    for written in component.__mro__:
        if written.__module__ == component.__module__:
            with suppress(OSError, TypeError):  # what an open family makes on the fly has no source; its base has
                _, line = inspect.getsourcelines(written)
                break
    root = component.__module__.partition(".")[0]
    owners = {entry.value.partition(":")[0].partition(".")[0]: entry.distribution for entry in plugins.entries}
    distribution = "akssl-core" if root == __package__.partition(".")[0] else owners.get(root, "")
    file = inspect.getsourcefile(written) or "?"
    return Location(written.__module__, file, line, distribution or "-", version(distribution) if distribution else "-")
