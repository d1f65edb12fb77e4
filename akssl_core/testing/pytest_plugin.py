"""A pytest plugin of the core: fixtures for tests of plugins. Nothing heavy is imported before a fixture is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from akssl_core import Plugins


@pytest.fixture
def akssl_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """A plugin manager that knows the core's own components and nothing that happens to be installed.

    Register what the test is about: `akssl_plugins.register(module, "mine")`. While the test runs, every other
    plugin manager is blind to installed plugins as well.
    """
    from akssl_core import Plugins
    from akssl_core.plugins.manager import installed

    monkeypatch.setenv("AKSSL_PLUGINS", "")
    installed.cache_clear()
    yield Plugins()
    installed.cache_clear()
