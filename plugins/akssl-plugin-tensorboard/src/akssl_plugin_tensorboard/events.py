"""TensorBoard's event files, written record by record with the `tensorboard` package alone.

Its own writer hands records to a thread, which reports a full disk as a traceback of its own and imports
TensorFlow where that is installed. A row is a few hundred bytes, so it is written where it is met.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# TensorBoard ships no types.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import metadata as hparams  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.api_pb2 import Status  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import (  # type: ignore[import-untyped]
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.plugins.text import metadata as texts  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_tensor_proto  # type: ignore[import-untyped]

SUFFIX = "akssl"  # tells our event files from others in the same folder


def earlier(folder: Path) -> list[Path]:
    """The event files that this plugin has written into a folder, oldest first."""
    return sorted(folder.glob(f"events.out.tfevents.*.{SUFFIX}"))


class EventFile:
    """One event file. TensorBoard reads those of a folder as one, in the order of the times in their names."""

    def __init__(self, folder: Path, flush_seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{SUFFIX}").open("xb")
        self._records = RecordWriter(self._file)
        self._flush_seconds = flush_seconds
        self._flushed = time.monotonic()
        self._add(file_version="brain.Event:2")

    def purge(self, step: int) -> None:
        """Hide what earlier files of the folder say from this step on."""
        self._add(step=step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by their tags, kept as 32-bit floats."""
        values_at_step = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step=step, summary=Summary(value=values_at_step))

    def text(self, tag: str, markdown: str) -> None:
        """A text under "Text", in Markdown."""
        self._describe(tag, texts.create_summary_metadata("", ""), make_tensor_proto([markdown]))

    def session_start(self, hyperparameters: Mapping[str, bool | float | str]) -> None:
        """The line of this run under "HParams"; its columns are found by TensorBoard over all runs that it shows."""
        info = SessionStartInfo(start_time_secs=time.time())
        for name, value in hyperparameters.items():
            if isinstance(value, bool):
                info.hparams[name].bool_value = value
            elif isinstance(value, str):
                info.hparams[name].string_value = value
            else:
                info.hparams[name].number_value = value
        self._session(hparams.SESSION_START_INFO_TAG, session_start_info=info)

    def session_end(self) -> None:
        """Mark the run as done."""
        info = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
        self._session(hparams.SESSION_END_INFO_TAG, session_end_info=info)

    def flush(self) -> None:
        """Hand all records over to the system."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()

    def _session(self, tag: str, **info: Any) -> None:
        self._describe(tag, hparams.create_summary_metadata(HParamsPluginData(**info)), hparams.NULL_TENSOR)

    def _describe(self, tag: str, metadata: Any, tensor: Any) -> None:
        self._add(step=0, summary=Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))

    def _add(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        try:
            self._records.write(event.SerializeToString())
            if time.monotonic() - self._flushed >= self._flush_seconds:
                self.flush()
        except OSError:
            with suppress(OSError):  # closing tries to write once more
                self.close()
            raise
