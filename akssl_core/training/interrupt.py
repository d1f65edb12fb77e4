"""SIGINT and SIGTERM: a run saves and stops at the end of its step; a second SIGINT stops it at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from .. import dist

ASKS = (signal.SIGINT, signal.SIGTERM)
SAME = 1.0  # seconds within which a launcher's copy of a signal counts as the same one


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved a checkpoint of the step it stands at."""


class Signals:
    """While it lasts, the first SIGINT or SIGTERM is remembered instead of ending the process.

    Outside of the main thread nothing is changed, since Python hands signals to that thread alone.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._when = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in ASKS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> str | None:
        """The signal's name, once any process of the run was asked to stop; all of them say so after the same step."""
        if not dist.any_rank(self._asked is not None):
            return None
        return self._asked.name if self._asked else "a signal to another process"

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and time.monotonic() - self._when > (SAME if dist.world() > 1 else 0):
            raise KeyboardInterrupt
        self._asked, self._when = signal.Signals(number), time.monotonic()
