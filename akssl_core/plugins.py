"""Finding plugins by metadata, loading only the one that is asked for, and keeping a bad one from hurting others.

Stage one reads entry points and imports nothing. Stage two imports one plugin, lets it register its
components, and takes everything back if any part of that fails.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from . import hookspecs
from .config import Component, Schema
from .errors import PluginError, did_you_mean, plain, suggest
from .first_party import PROVIDERS

API = 1
GROUP = f"akssl.v{API}"
STAND_IN = "custom"  # the name that an object passed from Python has in a configuration
KINDS = ("method", "backbone", "augmentation", "loss", "data", "optimizer", "callback")
BUILT_IN = ("augment", "backbone", "custom", "data", "optim")  # rooms that register components

C = TypeVar("C", bound=type[Component])


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry point as its metadata tells it; nothing of it has been imported."""

    name: str
    value: str
    distribution: str
    version: str
    api: str
    status: str  # "installed", "other API", "clash", "blocked"
    reason: str = ""

    def record(self) -> dict[str, str]:
        """The entry as a row of a listing."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an installed plugin cannot be used."""

    name: str
    distribution: str
    version: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} is installed but did not load: {self.error!r}"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a component is written and who provides it."""

    module: str
    file: str
    line: int
    plugin: str


class Registry:
    """Every component that is loaded, by kind and name."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], type[Component]] = {}
        self._owners: dict[tuple[str, str], str] = {}
        self.owner = ""  # the plugin that is registering now

    def add(self, component: C) -> C:
        """Register a component class; usable as a decorator.

        Raises:
            PluginError: the class is not a complete component, or its name is taken.
        """
        _check(component)
        key = (component.kind, plain(component.name))
        if key in self._components:
            taken = self._owners[key]
            raise PluginError(f"{component.kind} '{component.name}' is already provided by the plugin '{taken}'.")
        self._components[key] = component
        self._owners[key] = self.owner
        return component

    def drop(self, owner: str) -> None:
        """Take back all that one plugin has added."""
        for key in [key for key, name in self._owners.items() if name == owner]:
            del self._components[key], self._owners[key]

    def look(self, kind: str, name: str) -> type[Component] | None:
        """The component, or None; names are compared without case, `-`, `_` and spaces."""
        return self._components.get((kind, plain(name)))

    def names(self, kind: str) -> list[str]:
        """The names of one kind that are loaded, sorted."""
        return sorted(c.name for (k, _), c in self._components.items() if k == kind)

    def components(self, kind: str) -> list[tuple[type[Component], str]]:
        """Each component of one kind with the plugin that added it, sorted by name."""
        pairs = [(c, self._owners[key]) for key, c in self._components.items() if key[0] == kind]
        return sorted(pairs, key=lambda pair: pair[0].name)

    def owned(self, owner: str) -> list[type[Component]]:
        """What one plugin has added."""
        return [self._components[key] for key, name in self._owners.items() if name == owner]

    def find(self, kind: str, name: str) -> Location:
        """Module, file and line of a loaded component."""
        component = self._components[kind, plain(name)]
        _, line = inspect.getsourcelines(component)
        file = inspect.getsourcefile(component) or "?"
        return Location(component.__module__, file, line, self._owners[kind, plain(name)])


def _check(component: Any) -> None:
    """Refuse what is not a complete component, saying what is missing."""
    label = getattr(component, "__name__", repr(component))
    if not (inspect.isclass(component) and issubclass(component, Component)):
        raise PluginError(f"{label} is not a component: derive it from Method, Backbone, Augmentation, Loss, ...")
    if getattr(component, "kind", None) not in KINDS:
        raise PluginError(f"{label}.kind must be one of {', '.join(KINDS)}.")
    if not isinstance(getattr(component, "name", None), str) or not component.name:
        raise PluginError(f'{label} has no name: add the class attribute name = "..." that users will type.')
    if not (inspect.isclass(component.Config) and issubclass(component.Config, Schema)):
        raise PluginError(f"{label}.Config must derive from akssl_core.Schema.")
    if missing := sorted(getattr(component, "__abstractmethods__", ())):
        raise PluginError(f"{label} lacks {', '.join(missing)}, which every {component.kind} defines.")


def _canonical(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _raw_entries() -> Iterator[Entry]:
    """Each entry point of any API version once, stale copies of one distribution's metadata left out."""
    seen = set()
    points = importlib.metadata.entry_points()
    for group in sorted(g for g in points.groups if g.startswith("akssl.v")):
        for point in points.select(group=group):
            distribution = point.dist.name if point.dist else "unknown"
            version = point.dist.version if point.dist else "?"
            key = (group, plain(point.name), _canonical(distribution))
            if key not in seen:
                seen.add(key)
                api = group.removeprefix("akssl.v")
                yield Entry(point.name, point.value, distribution, version, api, "installed")


def _allowed() -> frozenset[str] | None:
    """The plugins that AKSSL_PLUGINS lets in; None: all."""
    value = os.environ.get("AKSSL_PLUGINS")
    return None if value is None else frozenset(plain(name) for name in value.split(",") if name.strip())


def entries() -> list[Entry]:
    """All installed plugins with their status, sorted by name, from metadata alone."""
    raw, allowed = list(_raw_entries()), _allowed()
    claims: dict[str, set[str]] = {}
    for entry in raw:
        if entry.api == str(API):
            claims.setdefault(plain(entry.name), set()).add(f"{entry.distribution} {entry.version}")
    result = []
    for entry in raw:
        status, reason = "installed", ""
        owners = claims.get(plain(entry.name), set())
        if entry.api != str(API):
            status, reason = "other API", f"made for API {entry.api}; this core offers {API}"
        elif allowed is not None and not {plain(entry.name), plain(entry.distribution)} & allowed:
            status, reason = "blocked", "not named in AKSSL_PLUGINS"
        elif len(owners) > 1:
            status, reason = "clash", f"claimed by {' and '.join(sorted(owners))}; uninstall all but one"
        result.append(Entry(entry.name, entry.value, entry.distribution, entry.version, entry.api, status, reason))
    return sorted(result, key=lambda e: (plain(e.name), e.distribution))


class Plugins:
    """The plugin manager: looks components up by name, importing as little as that takes."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.failures: dict[str, Failure] = {}
        self.entries = entries()
        self._loaded: set[str] = set()
        self._strict = os.environ.get("AKSSL_STRICT") == "1"
        self._pm = pluggy.PluginManager("akssl")
        self._pm.add_hookspecs(hookspecs)
        if os.environ.get("AKSSL_TRACE") == "1":
            self._pm.add_hookcall_monitoring(_trace_call, lambda *outcome: None)
        # Made before any plugin exists, so that registering one runs the hook for that one alone.
        self._pm.hook.akssl_register.call_historic(kwargs={"registry": self.registry})

    @property
    def hook(self) -> Any:
        """The run hooks of all loaded plugins."""
        return self._pm.hook

    def register(self, plugin: object, name: str) -> None:
        """Register a module or object with hooks: for notebooks, tests and one-file plugins.

        Raises:
            PluginError: with the cause; all that the plugin had added is taken back.
        """
        self.registry.owner = name
        try:
            self._pm.register(plugin, name)
            self._pm.check_pending()
        except (Exception, SystemExit) as error:
            if self._pm.has_plugin(name):
                self._pm.unregister(name=name)
            self.registry.drop(name)
            raise PluginError(f"plugin '{name}' cannot be used: {error}") from error
        finally:
            self.registry.owner = ""

    def load(self, entry: Entry) -> None:
        """Import one installed plugin. A failure is kept in `failures` and hurts nobody else."""
        if entry.name in self._loaded or entry.status != "installed":
            return
        self._loaded.add(entry.name)
        _trace(f"loading {entry.name} from {entry.distribution} {entry.version}")
        try:
            module = importlib.import_module(entry.value.partition(":")[0])
            if not self._pm.is_registered(module):
                self.register(module, entry.name)
        except (Exception, SystemExit) as error:
            cause = error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error
            self.failures[entry.name] = Failure(entry.name, entry.distribution, entry.version, cause)
            _trace(f"failed: {self.failures[entry.name]}")
            if self._strict:
                raise PluginError(f"plugin '{entry.name}': {self.failures[entry.name]}") from error

    def load_all(self) -> None:
        """Import every installed plugin, for listings."""
        self._load_built_in()
        for entry in self.entries:
            self.load(entry)

    def load_file(self, path: Path) -> None:
        """Load a plugin that is a single Python file, without packaging.

        Raises:
            PluginError: the file does not exist, does not import or registers nothing usable.
        """
        if not path.is_file():
            raise PluginError(f"plugin file {path} does not exist.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise PluginError(f"plugin file {path} is not a Python file (its name must end in .py).")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[path.stem]
            raise PluginError(f"plugin file {path} did not load: {error!r}") from error
        self.register(module, path.stem)
        if not self.registry.owned(path.stem):
            raise PluginError(
                f"plugin file {path} registers nothing. Add: @hookimpl def akssl_register(registry): registry.add(...)"
            )

    def get(self, kind: str, name: str) -> type[Component]:
        """The component, importing the one plugin that carries its name, then the others if they must be asked.

        Raises:
            PluginError: not installed (with the package to install), misspelt, or its plugin did not load.
        """
        self._load_built_in()
        for entry in [None, *self._by_likelihood(kind, name)]:
            if entry is not None:
                self.load(entry)
            if found := self.registry.look(kind, name):
                return found
        resolved: type[Component] | None = self._pm.hook.akssl_resolve(kind=kind, name=name)
        if resolved is None:
            raise self._missing(kind, name)
        return resolved

    def names(self, kind: str) -> list[str]:
        """All names of one kind that could be meant: those loaded and, for methods, those installed."""
        self._load_built_in()
        names = set(self.registry.names(kind)) - {STAND_IN}
        if kind == "method":
            names |= {entry.name for entry in self.entries if entry.status == "installed"}
        return sorted(names)

    def _load_built_in(self) -> None:
        """The core's own components come through the same hook as everybody's."""
        for room in BUILT_IN:
            if room not in self._loaded:
                self._loaded.add(room)
                self.register(_import_room(room), f"akssl_core.{room}")

    def _by_likelihood(self, kind: str, name: str) -> list[Entry]:
        """Entries in the order in which they are worth importing: the namesake, its provider, the rest."""
        provider = PROVIDERS.get(kind, {}).get(plain(name))
        return sorted(self.entries, key=lambda e: (plain(e.name) != plain(name), e.distribution != provider))

    def _missing(self, kind: str, name: str) -> PluginError:
        """Why a name cannot be had, with the cure."""
        for entry in self.entries:
            if plain(entry.name) == plain(name):
                if failure := self.failures.get(entry.name):
                    return _failed(kind, name, failure)
                if entry.status != "installed":
                    return PluginError(f"{kind} '{name}': {entry.distribution} {entry.version}: {entry.reason}.")
        if provider := PROVIDERS.get(kind, {}).get(plain(name)):
            for failure in self.failures.values():
                if _canonical(failure.distribution) == provider:
                    return _failed(kind, name, failure)
            return PluginError(f"no {kind} named '{name}' is installed. Install it with: pip install {provider}")
        known = self.names(kind)
        hint = did_you_mean(name, known)
        if not hint and (near := suggest(name, PROVIDERS.get(kind, {}))):
            hint = f" Did you mean '{near}'? Install it with: pip install {PROVIDERS[kind][near]}."
        return PluginError(f"no {kind} named '{name}'.{hint} Installed: {', '.join(known) or 'none'}.")


def version(distribution: str) -> str:
    """The installed version of a distribution, or "not installed"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment(plugins: Plugins) -> dict[str, Any]:
    """Versions and the plugin table, for a run's manifest."""
    names = ("akssl-core", "torch", "torchvision", "pluggy", "pydantic", "safetensors", "numpy", "pillow")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {"versions": versions, "plugins": [entry.record() for entry in plugins.entries]}


def _failed(kind: str, name: str, failure: Failure) -> PluginError:
    error = PluginError(f"{kind} '{name}': {failure}. Mend it with: pip install -U {failure.distribution}")
    error.__cause__ = failure.error
    return error


def _import_room(room: str) -> ModuleType:
    return importlib.import_module(f"akssl_core.{room}")


def _trace(message: str) -> None:
    if os.environ.get("AKSSL_TRACE") == "1":
        sys.stderr.write(f"akssl: {message}\n")


def _trace_call(hook_name: str, impls: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    _trace(f"hook {hook_name} -> {', '.join(impl.plugin_name for impl in impls) or 'nobody'}")


@functools.cache
def installed() -> Plugins:
    """The process-wide plugin manager over what is installed."""
    return Plugins()
