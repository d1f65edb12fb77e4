"""The four hooks: what a plugin may answer. A plugin author reads this file first.

Hooks register components and watch runs; they never train. A hook only ever gains arguments, and an
implementation may take any subset of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from .config.registry import Registry
    from .config.schema import Component

hookspec = pluggy.HookspecMarker("akssl")
hookimpl = pluggy.HookimplMarker("akssl")


@hookspec(historic=True)
def akssl_register(registry: Registry) -> None:
    """Add this plugin's components: `registry.add(MyMethod)`.

    Called once, when the plugin is loaded, for this plugin alone: an exception here disables this plugin only.
    """


@hookspec(firstresult=True)
def akssl_resolve(kind: str, name: str) -> type[Component] | None:
    """Answer for a name that is in no registry, as an open family does ("timm/vit_small_patch16_224").

    Return the component's class, or None when the name is not yours.
    """


@hookspec
def akssl_run_started(config: Mapping[str, Any], run_dir: Path) -> None:
    """Called in the main process before the first step, with the resolved configuration and the run folder."""


@hookspec
def akssl_run_finished(metrics: Mapping[str, float] | None, run_dir: Path) -> None:
    """Called in the main process when a run ends; `metrics` is None when it failed."""
