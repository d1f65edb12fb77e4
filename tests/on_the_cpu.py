"""A fixture that the tests of the core and of the plugins share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from akssl_core.training import hardware


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu() -> Iterator[Callable[[], str]]:
    """`auto` means the CPU, whose bits tests compare, on a machine with a GPU too; a test of another device names it.

    What `auto` means otherwise is given back, for tests of that.
    """
    usual = hardware.automatic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "automatic", lambda: "cpu")
        yield usual
