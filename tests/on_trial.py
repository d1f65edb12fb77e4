"""Methods as small runs ask for them: with what their defaults need of a user."""

from __future__ import annotations

from typing import Any

from akssl_core.plugins.manager import Plugins, installed


def on_trial(name: str, plugins: Plugins | None = None) -> dict[str, Any]:
    """A method with the settings of its trials, as `run` and `collect` take it."""
    method: Any = (plugins or installed()).get("method", name)
    return {"name": name, **method.trial_settings}
