"""The toys, and a method that fails."""

from __future__ import annotations

import pytest
from many_runs import Breaking

from akssl_core import hookimpl


@pytest.fixture
def more(toys):
    class Plugin:
        @hookimpl
        def akssl_register(self, registry):
            registry.add(Breaking)

    toys.register(Plugin(), "breaking")
    return toys
