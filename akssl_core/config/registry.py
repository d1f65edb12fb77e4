"""The components that are loaded, by kind and name, and what a complete component is."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from ..errors import PluginError, plain
from .schema import Component, Schema

STAND_IN = "custom"  # the name that an object passed from Python has in a configuration
KINDS = ("method", "backbone", "augmentation", "loss", "data", "decoder", "optimizer", "callback")
ALIASES = {"dataset": "data", "logger": "callback"}  # what people call two of them

C = TypeVar("C", bound=type[Component])


class Registry:
    """Every component that is loaded, by kind and name."""

    def __init__(self) -> None:
        self._added: dict[tuple[str, str], tuple[type[Component], str]] = {}  # with the plugin that added it
        self.owner = ""  # the plugin that is registering now

    def add(self, component: C) -> C:
        """Register a component class; usable as a decorator.

        Raises:
            PluginError: the class is not a complete component, or its name is taken.
        """
        check_component(component)
        key = (component.kind, plain(component.name))
        if key in self._added:
            taken = self._added[key][1]
            raise PluginError(f"{component.kind} '{component.name}' is already provided by the plugin '{taken}'.")
        self._added[key] = component, self.owner
        return component

    def drop(self, owner: str) -> None:
        """Take back all that one plugin has added."""
        self._added = {key: pair for key, pair in self._added.items() if pair[1] != owner}

    def look(self, kind: str, name: str) -> type[Component] | None:
        """The component, or None; names are compared without case, `-`, `_` and spaces."""
        component, _ = self._added.get((kind, plain(name)), (None, ""))
        return component

    def names(self, kind: str) -> list[str]:
        """The names of one kind that are loaded, sorted."""
        return [component.name for component, _ in self.components(kind)]

    def components(self, kind: str) -> list[tuple[type[Component], str]]:
        """Each component of one kind with the plugin that added it, sorted by name."""
        return sorted((pair for key, pair in self._added.items() if key[0] == kind), key=lambda pair: pair[0].name)

    def owner_of(self, component: type[Component]) -> str:
        """The plugin that has added a component; "" where an open family made it."""
        return self._added.get((component.kind, plain(component.name)), (component, ""))[1]

    def owned(self, owner: str) -> list[type[Component]]:
        """The components that one plugin has added."""
        return [component for component, name in self._added.values() if name == owner]


def check_component(component: Any) -> None:
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
