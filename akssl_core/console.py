"""What is said beside a run, on stderr. Nobody may be there to hear it, and that is no reason to stop."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


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


def fill_closed_streams() -> None:
    """Open what a parent has closed of stdin, stdout and stderr, or the next file would bear its number and its text.

    They lead nowhere, as before.
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
    except (OSError, ValueError):  # it is no file
        return False
    return False


def drop_stdout() -> None:
    """Forget what stdout could not take, so that the end of the process does not try again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
