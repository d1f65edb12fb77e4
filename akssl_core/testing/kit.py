"""All checks of one component, ready to be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config.registry import ALIASES
from ..config.schema import Component
from ..errors import ConfigError, did_you_mean
from ..plugins.manager import Plugins, installed
from . import backbones as backbones
from . import layouts as layouts
from . import learning as learning
from . import losses as losses
from . import others as others
from . import published as published
from . import setting_checks as setting_checks
from . import state as state
from . import steps as steps
from . import views as views
from .check import CHECKS, Check
from .subject import ComponentSubject, MethodSubject


def checks(
    component: str | type[Component],
    *,
    kind: str = "method",
    settings: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    slow: bool = False,
    plugins: Plugins | None = None,
) -> list[Check]:
    """The checks that a component must pass.

    Args:
        component: the name of an installed component, or its class, which is then registered for these checks alone.
        kind: "method", "backbone", "augmentation", "loss", "data", "optimizer" or "callback"; a class knows its own.
        settings: of the component, where its defaults need more (a path, say) or do not suit toy data.
        backbone: the name of a backbone for a method that cannot use the kit's own.
        slow: also the checks that learn for a minute.
        plugins: another plugin manager than the process-wide one.

    Raises:
        PluginError: nothing of that kind and name is installed.
        ConfigError: there is no such kind.
    """
    if not isinstance(component, str):
        plugins, kind, component = _alone(component), component.kind, component.name
    kind = ALIASES.get(kind, kind)
    kinds = sorted({check.kind for check in CHECKS})
    if kind not in kinds:
        raise ConfigError(
            f"kind: there are no checks of '{kind}'.{did_you_mean(kind, kinds)} Kinds: {', '.join(kinds)}."
        )
    plugins = plugins or installed()
    found: Any = plugins.get(kind, component)
    if kind == "method":
        subject: Any = MethodSubject(found, plugins, settings or {}, backbone)
    else:
        subject = ComponentSubject(found, plugins, settings or {})
    return [replace(check, subject=subject) for check in CHECKS if check.kind == kind and (slow or not check.slow)]


def _alone(component: type[Component]) -> Plugins:
    """A plugin manager that also knows one more class."""
    plugins = Plugins()
    plugins.registry.owner = "checks"
    plugins.registry.add(component)
    plugins.registry.owner = ""
    return plugins
