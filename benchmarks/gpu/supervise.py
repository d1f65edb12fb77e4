"""Has a part's rows run in a process beside this one, and keeps what they find: whatever happens there, this goes on.

A row that crashes its process, or takes longer than it may, is told as that, and a fresh process goes on with the next.
The files are written after every row, and the last one is done before the time is up.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
SHOWN = ("row", "what", "verdict", "found", "wanted", "seconds")
BAD = ("fail", "crashed")


@dataclass
class Part:
    """One table on its way."""

    name: str
    out: Path
    options: list[str]
    environment: dict[str, str]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    names: list[tuple[str, float]] = field(default_factory=list)
    """Of all rows, with the seconds that each may take."""
    lines: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> bool:
        """Run every row; whether none has failed."""
        self._end = time.monotonic() + self.seconds
        self._next, self._usable = 0, True
        self.write()
        while self._usable and self.left() > 0 and (not self.names or self._next < len(self.names)):
            self._process()
        for name, _ in self.names[self._next :]:
            self.add(name, verdict="out of time", found=f"not begun within {self.seconds:g} s")
        self.write()
        return not any(line["verdict"] in BAD for line in self.lines)

    def left(self) -> float:
        """Seconds until the part must be over."""
        return self._end - time.monotonic()

    def add(self, row: str, **line: Any) -> None:
        """One more line, also on the screen."""
        self.lines.append({"row": row, "what": "", "wanted": "", **line})
        shown = self.lines[-1]
        texts = (shown[key] for key in ("verdict", "row", "what", "found", "wanted"))
        print("  ".join(str(text) for text in texts if text != ""), flush=True)

    def write(self) -> None:
        """`NAME.json` and `NAME.md`."""
        table = {"facts": self.facts, "rows": self.lines}
        (self.out / f"{self.name}.json").write_text(json.dumps(table, indent=2) + "\n")
        cells = [[str(line.get(key, "")).replace("|", "\\|") for key in SHOWN] for line in self.lines]
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        rows = [list(SHOWN), ["---"] * len(SHOWN), *cells]
        text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        (self.out / f"{self.name}.md").write_text(f"{text}\n\n({facts})\n")

    # -- one process --------------------------------------------------------------------------
    def _process(self) -> None:
        """Run rows from the next one on, until all are done or the process has ended."""
        command = [sys.executable, str(WORKER), "--first", str(self._next), *self.options]
        with (self.out / f"{self.name}.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment, process_group=0
            )
        messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        listener = threading.Thread(target=_forward, args=(process, messages), daemon=True)
        listener.start()
        try:
            self._listen(process, messages)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it, and what its row has started
            process.wait()
            listener.join()

    def _listen(self, process: subprocess.Popen[str], messages: queue.Queue[dict[str, Any] | None]) -> None:
        """Keep what the process tells, until it is through or has taken too long."""
        row: int | None = None
        until = self._end
        while True:
            try:
                message = messages.get(timeout=max(0.0, min(until, self._end) - time.monotonic()))
            except queue.Empty:
                self._stopped(row)
                return
            if message is None:
                self._ended(row, process.wait())
                return
            self.facts = message.get("facts", self.facts)
            self.names = [(name, limit) for name, limit in message.get("rows", self.names)]
            if "begin" in message:
                row = int(message["begin"])
                until, first = time.monotonic() + self.names[row][1], len(self.lines)
            elif "line" in message and row is not None:
                self.add(self.names[row][0], **message["line"])
            elif "end" in message and row is not None:
                for line in self.lines[first:]:
                    line["seconds"] = message["seconds"]
                self._next, row, until = row + 1, None, self._end
                self.write()

    def _stopped(self, row: int | None) -> None:
        """A row, or the part, has had its time."""
        if row is not None:
            name, limit = self.names[row]
            self.add(name, verdict="out of time", found=f"stopped after {min(limit, self.seconds):g} s at most")
            self._next = row + 1
            self.write()

    def _ended(self, row: int | None, code: int) -> None:
        """The process is gone, with or without an answer."""
        if row is not None:
            self.add(self.names[row][0], verdict="crashed", found=f"its process ended with {code}")
            self._next = row + 1
        elif not self.names:
            said = (self.out / f"{self.name}.log").read_text().split("\n")
            self.add("start", verdict="crashed", found=f"it ended with {code}: {''.join(said[-2:])}")
            self._usable = False


def _forward(process: subprocess.Popen[str], messages: queue.Queue[dict[str, Any] | None]) -> None:
    """What the process says, line by line; None at its end."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            messages.put(json.loads(line))
    messages.put(None)
