"""The parts that a plugin may add around training: callbacks, which see the engine, and loggers, which see rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import dist
from ..config.schema import Component, Ref
from ..errors import AksslError

if TYPE_CHECKING:
    from .engine import Engine, Terms


class Callback(Component):
    """Something that happens around training, in the order in which the run lists it."""

    kind = "callback"

    def on_start(self, engine: Engine) -> None:
        """Before the first step of this process; `engine.now` tells where a resumed run stands."""

    def on_step(self, engine: Engine, terms: Terms) -> None:
        """After each optimizer step. Reading `terms` makes the host wait for the device."""

    def on_epoch(self, engine: Engine) -> None:
        """After each epoch, and when a run ends within one."""

    def on_end(self, engine: Engine) -> None:
        """After the last step."""

    def state(self) -> dict[str, Any]:
        """The memory that a resumed run needs to go on as if it had not stopped; JSON, stored with each checkpoint.

        Called in every process; that of the main one is kept.
        """
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, before `on_start`."""


class Logger(Component):
    """Observes a run from the main process and never sees the engine, so it cannot change what is trained.

    It is listed among a run's callbacks. If it raises, it is dropped with one warning and the run goes on.
    """

    kind = "callback"

    def on_run(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """Before the first row of this process: the resolved settings, and the folder that later holds everything."""

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Each row of `metrics.jsonl`, as it is written."""

    def on_finish(self, metrics: Mapping[str, float] | None) -> None:
        """When the run ends: the final numbers, or None when it was stopped or failed."""


def _dropped(logger: str, error: Exception) -> None:
    warnings.warn(f"logger '{logger}' failed and is dropped: {error!r}", stacklevel=3)


class Observers:
    """The loggers of a run, told one after the other; one that raises hears nothing more."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)

    @classmethod
    def built(cls, refs: Sequence[Ref]) -> Observers:
        """The loggers that a run lists, without those that cannot be built.

        Raises:
            AksslError: one of them was told something that the user can mend.
        """
        loggers = []
        for ref in refs:
            try:
                loggers.append(ref.build())
            except AksslError:
                raise
            except Exception as error:  # as below
                _dropped(ref.name, error)
        return cls(loggers)

    def tell(self, event: Literal["on_run", "on_row", "on_finish"], *facts: Any) -> None:
        """Call one method of every logger, in the main process alone."""
        for logger in list(self.loggers) if dist.is_main() else ():
            try:
                getattr(logger, event)(*facts)
            except Exception as error:  # an observer must not stop a run
                self.loggers.remove(logger)
                _dropped(logger.name, error)
