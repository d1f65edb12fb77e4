"""Lines and progress bars on stderr, which may be closed, full or gone: no reason to stop."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

TELL_EVERY = 10  # seconds between plain lines of progress


def say(text: str) -> None:
    """A line on stderr; nothing where it is closed, full or gone with its terminal."""
    with suppress(OSError, ValueError):  # ValueError: a stream that was closed
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def attended() -> bool:
    """Whether stderr is a terminal, for which bars are drawn."""
    with suppress(OSError, ValueError):
        return sys.stderr is not None and sys.stderr.isatty()
    return False


class Progress:
    """How far long work is: a bar where stderr is a terminal, else a plain line every ten seconds."""

    def __init__(self, total: int, unit: str, *, leave: bool = True) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit=unit, leave=leave, disable=not attended(), file=sys.stderr)
        self._total, self._unit, self._done, self._told = total, unit, 0, time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        self._done += count
        self._bar.update(count)
        if time.perf_counter() - self._told > TELL_EVERY:
            self._told = time.perf_counter()
            self.tell(f"{self._unit} {self._done}/{self._total}")

    def tell(self, text: str) -> None:
        """A line where there is no bar."""
        if self._bar.disable:
            say(text)


def fill_closed_streams() -> None:
    """Open stdin, stdout and stderr where a parent has closed them, leading nowhere.

    Otherwise the next file that is opened would get the number of such a stream, and be written what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def reader_is_gone() -> bool:
    """Whether the pipe that broke is stdout; where it is not, this ends its line."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        return True
    except (OSError, ValueError, AttributeError):  # it is no file, or there is none
        pass
    return False


def drop_stdout() -> None:
    """Forget what stdout could not take, so that the end of the process does not try again."""
    with suppress(OSError, ValueError, AttributeError):  # AttributeError: there is none
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
