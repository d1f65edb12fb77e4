"""Finding plugins by metadata, loading only the one that is asked for, and keeping a bad one from hurting others.

Stage one reads entry points and imports nothing. Stage two imports one plugin, lets it register its
components, and takes everything back if any part of that fails.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pluggy

from .. import hookspecs
from ..config.registry import KINDS, STAND_IN, Registry, check_component
from ..config.schema import Component
from ..console import say
from ..errors import (
    AksslError,
    ConfigError,
    PluginError,
    UnknownComponent,
    did_you_mean,
    plain,
    shown,
    suggest,
    told,
)
from .first_party import PACKAGES, PROVIDERS, install
from .installed import Entry, canonical, entries

BUILT_IN = ("augment", "backbone", "running.layers", "data", "optim")  # rooms that register components


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an installed plugin cannot be used: it did not import, or what it registers is not complete."""

    entry: Entry
    error: BaseException
    status: Literal["broken", "invalid"]

    def __str__(self) -> str:
        return f"{self.entry.distribution} {self.entry.version} is installed but did not load: {told(self.error)}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin that was imported."""

    owner: str  # the name under which its components are registered; entry points of one module share it
    file: str
    seconds: float  # that the import took


def _unknown_hook(plugin: object) -> str:
    """Tell of a hook that does not exist, with the nearest that does; nothing where all of them do."""
    hooks = [name for name in vars(hookspecs) if name.startswith("akssl_")]
    marked = [name for name in dir(plugin) if hasattr(getattr(plugin, name), f"{hookspecs.hookimpl.project_name}_impl")]
    for name in marked:
        if name not in hooks:
            return f"unknown hook '{name}'.{did_you_mean(name, hooks)} Hooks: {', '.join(hooks)}."
    return ""


def _family(name: str) -> str:
    """The plain form of what stands before the slash ("timm/vit_tiny"), or of the whole name."""
    return plain(name.partition("/")[0])


def is_no_method(entry: Entry) -> bool:
    """Whether our own table knows that a plugin provides something else (a plugin of a stranger may be a method)."""
    return "method" not in PACKAGES.get(entry.distribution, ("method",))


class Plugins:
    """The plugin manager: looks components up by name, importing as little as that takes."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.failures: dict[str, Failure] = {}
        self.entries = entries()
        self.loaded: dict[str, Loaded] = {}  # by entry point or file
        self._known: dict[tuple[str, str], str] = {}  # who provided a component, or a family, to a run
        self._tried: set[str] = set()
        self._strict = os.environ.get("AKSSL_STRICT") == "1"
        self._pm = pluggy.PluginManager("akssl")
        self._pm.add_hookspecs(hookspecs)
        if os.environ.get("AKSSL_TRACE") == "1":
            self._pm.add_hookcall_monitoring(_trace_call, lambda *outcome: None)
        # Made before any plugin exists, so that registering one runs the hook for that one alone.
        self._pm.hook.akssl_register.call_historic(kwargs={"registry": self.registry})

    def tell(self, event: str, **facts: Any) -> None:
        """Call a run hook of every loaded plugin; one that raises is warned of and stops neither run nor others."""
        for implementation in getattr(self._pm.hook, event).get_hookimpls():
            _trace(f"hook {event} -> {implementation.plugin_name}")
            try:
                implementation.function(*(facts[name] for name in implementation.argnames))
            except Exception as error:  # an observer must not stop a run
                text = f"plugin '{implementation.plugin_name}' failed in {event} and is passed over: {told(error)}"
                warnings.warn(text, stacklevel=2)

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
            cause: BaseException = error
            if isinstance(error, pluggy.PluginValidationError) and (hint := _unknown_hook(plugin)):
                cause = PluginError(hint)
            words = cause if isinstance(cause, PluginError | pluggy.PluginValidationError) else told(cause)
            raise PluginError(f"plugin '{name}' cannot be used: {words}") from cause
        finally:
            self.registry.owner = ""

    def load(self, entry: Entry) -> None:
        """Import one installed plugin. A failure is kept in `failures` and hurts nobody else."""
        if entry.name in self._tried or entry.status != "installed":
            return
        self._tried.add(entry.name)
        _trace(f"loading {entry.name} from {entry.distribution} {entry.version}")
        started = time.perf_counter()
        try:
            module = importlib.import_module(entry.value.partition(":")[0])
        except (Exception, SystemExit) as error:
            self._failed(entry, error, "broken")
            return
        try:
            if not self._pm.is_registered(module):
                self.register(module, entry.name)
        except PluginError as error:
            cause = error.__cause__ or error
            understood = isinstance(cause, PluginError | pluggy.PluginValidationError)
            self._failed(entry, cause, "invalid" if understood else "broken")
            return
        owner = self._pm.get_name(module) or entry.name
        self.loaded[entry.name] = Loaded(owner, module.__file__ or "?", time.perf_counter() - started)

    def _failed(self, entry: Entry, error: BaseException, status: Literal["broken", "invalid"]) -> None:
        """Keep why a plugin cannot be used; in strict mode that is an error at once."""
        failure = Failure(entry, error, status)
        self.failures[entry.name] = failure
        _trace(f"failed: {failure}")
        if self._strict:
            raise PluginError(f"plugin '{entry.name}': {failure}") from error

    def remember(self, table: Iterable[Mapping[str, Any]]) -> None:
        """Note who provided what to a run, by the plugin table of its manifest, to name a plugin that is gone."""
        for row in table:
            provider = str(row.get("distribution") or row.get("file") or "")
            self._known["", plain(str(row.get("name")))] = provider
            for kind, _, name in (text.partition(" ") for text in str(row.get("provides")).split(", ")):
                self._known[kind, plain(name)] = provider

    def _provider(self, kind: str, name: str) -> str | None:
        """The distribution, ours or that of a run, which provides a component or the open family it belongs to."""
        ours = PROVIDERS.get(kind, {}).get(_family(name))
        family = self._known.get(("", _family(name))) if "/" in name else None
        return ours or self._known.get((kind, plain(name))) or family

    def answers(self, owner: str, hook: str) -> bool:
        """Whether a registered plugin implements a hook."""
        return any(one.plugin_name == owner for one in getattr(self._pm.hook, hook).get_hookimpls())

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
            raise PluginError(f"plugin file {path} did not load: {told(error)}") from error
        self.register(module, path.stem)
        self.loaded[path.stem] = Loaded(path.stem, str(path), 0.0)
        if not self.registry.owned(path.stem):
            raise PluginError(
                f"plugin file {path} registers nothing. Add: @hookimpl def akssl_register(registry): registry.add(...)"
            )

    def get(self, kind: str, name: str) -> type[Component]:
        """The component, importing the one plugin that carries its name, then the others if they must be asked.

        Raises:
            ConfigError: there is no such kind, or the name is no text.
            PluginError: not installed (with the package to install), misspelt, or its plugin did not load.
        """
        if kind not in KINDS:
            hint = did_you_mean(str(kind), KINDS)
            raise ConfigError(f"kind: there is no {shown(kind)}.{hint} Kinds: {', '.join(KINDS)}.")
        if not isinstance(name, str):
            raise ConfigError(f"{kind}: expected a name, got {shown(name)}.")
        self._load_built_in()
        for entry in [None, *self._by_likelihood(kind, name)]:
            if entry is not None:
                self.load(entry)
            if found := self.registry.look(kind, name) or self._resolve(kind, name):
                return found
        raise self._missing(kind, name)

    def provides(self, kind: str, name: str) -> bool:
        """Whether a component of this name is loaded, or the plugin that is named like it adds one."""
        self._load_built_in()
        for entry in self.entries:
            if plain(entry.name) == plain(name):
                self.load(entry)
        return self.registry.look(kind, name) is not None

    def _resolve(self, kind: str, name: str) -> type[Component] | None:
        """Ask the open families among the loaded plugins for a name that is in no registry."""
        facts = {"kind": kind, "name": name}
        for implementation in self._pm.hook.akssl_resolve.get_hookimpls():
            try:
                found = implementation.function(*(facts[key] for key in implementation.argnames))
                if found is not None:
                    check_component(found)
                    return cast(type[Component], found)
            except AksslError:
                raise  # the name is this family's, and wrong
            except Exception as error:
                plugin = implementation.plugin_name
                raise PluginError(f"{kind} '{name}': plugin '{plugin}' failed to look it up: {told(error)}") from error
        return None

    def names(self, kind: str) -> list[str]:
        """All names of one kind that could be meant: those loaded and, for methods, those installed."""
        self._load_built_in()
        names = set(self.registry.names(kind)) - {STAND_IN}
        if kind == "method":
            unseen = [e for e in self.entries if e.status == "installed" and e.name not in self._tried]
            names |= {entry.name for entry in unseen if not is_no_method(entry)}
        return sorted(names)

    def _load_built_in(self) -> None:
        """The core's own components come through the same hook as everybody's."""
        for room in BUILT_IN:
            if room not in self._tried:
                self._tried.add(room)
                self.register(importlib.import_module(f"akssl_core.{room}"), f"akssl_core.{room}")

    def _by_likelihood(self, kind: str, name: str) -> list[Entry]:
        """Entries in the order in which they are worth importing.

        First the namesake of the name or of the family before its slash, then its provider, then the rest.
        """
        provider, likely = self._provider(kind, name), (plain(name), _family(name))
        return sorted(self.entries, key=lambda e: (plain(e.name) not in likely, e.distribution != provider))

    def _missing(self, kind: str, name: str) -> PluginError:
        """Why a name cannot be had, with the cure."""
        for entry in self.entries:
            if plain(entry.name) in (plain(name), _family(name)):
                if failure := self.failures.get(entry.name):
                    return _unusable(kind, name, failure)
                if entry.status != "installed":
                    return PluginError(f"{kind} '{name}': {entry.distribution} {entry.version}: {entry.reason}.")
        if provider := self._provider(kind, name):
            for failure in self.failures.values():
                if canonical(failure.entry.distribution) == provider:
                    return _unusable(kind, name, failure)
            cure = f"Add --plugin-file {provider}" if "/" in provider else f"Install it with: {install(provider)}"
            return PluginError(f"no {kind} named '{name}' is installed. {cure}")
        known = self.names(kind)
        hint = did_you_mean(name, known)
        if not hint and (near := suggest(name, PROVIDERS.get(kind, {}))):
            hint = f" Did you mean '{near}'? Install it with: {install(PROVIDERS[kind][near])}."
        return UnknownComponent(f"no {kind} named '{name}'.{hint} Installed: {', '.join(known) or 'none'}.")


def _unusable(kind: str, name: str, failure: Failure) -> PluginError:
    error = PluginError(f"{kind} '{name}': {failure}. Mend it with: {install(failure.entry.distribution, newer=True)}")
    error.__cause__ = failure.error
    return error


def _trace(message: str) -> None:
    if os.environ.get("AKSSL_TRACE") == "1":
        say(f"akssl: {message}")


def _trace_call(hook_name: str, impls: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    _trace(f"hook {hook_name} -> {', '.join(impl.plugin_name for impl in impls) or 'nobody'}")


@functools.cache
def installed() -> Plugins:
    """The process-wide plugin manager over what is installed."""
    return Plugins()
