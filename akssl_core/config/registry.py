"""The components that are loaded, by kind and name, and what a complete component is."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from ..errors import PluginError, plain
from .schema import Component, Schema

STAND_IN = "custom"  # the name that an object passed from Python has in a configuration
KINDS = ("method", "backbone", "augmentation", "loss", "data", "optimizer", "callback")
ALIASES = {"dataset": "data", "logger": "callback"}  # what people call two of them

C = TypeVar("C", bound=type[Component])


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
        check_component(component)
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

    def owner_of(self, component: type[Component]) -> str:
        """The plugin that has added a component; "" where an open family made it."""
        return self._owners.get((component.kind, plain(component.name)), "")

    def owned(self, owner: str) -> list[type[Component]]:
        """The components that one plugin has added."""
        return [self._components[key] for key, name in self._owners.items() if name == owner]


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
