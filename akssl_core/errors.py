"""The exceptions a user can cause, and the nearest right name for a misspelt one."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

NOT_OURS = r"[/\\](akssl_core|torch)[/\\]"
"""In the path of a file: it is the core's or torch's."""

SHORT_OF_MEMORY = (
    r"(?i)out[ _]of[ _]memory\b|\bnot enough memory\b|\bcan(no|')t allocate memory\b"
    r"|\bunable to allocate shared memory\b|\bstd::bad_alloc\b|\bbad allocation\b|_STATUS_ALLOC_FAILED\b"
)
"""Words of torch and the system; of torch about its worker processes; of C++; of cuDNN and cuBLAS."""

LONGEST = 200  # characters of a value that a message shows


class AksslError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with 2."""


class ConfigError(AksslError, ValueError):
    """A setting has an unknown name or a value that is not allowed."""


class DataError(AksslError, ValueError):
    """The images cannot be found, read or used as asked."""


class PluginError(AksslError, LookupError):
    """A component is not installed, did not load, or two plugins claim its name."""


class UnknownComponent(PluginError):
    """No plugin, installed or known to us, has a component of this name."""


class RunDirError(AksslError, OSError):
    """A run folder cannot be created, opened or read."""


class RunStopped(RuntimeError):
    """A run could not go on, through no fault of its settings; its last checkpoint stands. The command exits with 1."""


def plain(name: str) -> str:
    """The form in which names are compared: lower case without `-`, `_` and spaces."""
    return name.lower().translate(str.maketrans("", "", "-_ "))


def visible(text: str, keep: str = "") -> str:
    """A text that came from a file, fit for a terminal: characters that would steer it, a newline too, are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and not all of a long one."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of so many digits that Python does not write it
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def told(error: BaseException) -> str:
    """An error of somebody else's code in a line: its type, its words and where it arose outside the core."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno))
    own = [(file, line) for file, line in frames if os.path.isfile(file) and not re.search(NOT_OURS, file)]
    where = f" ({own[-1][0]}:{own[-1][1]})" if own and not isinstance(error, AksslError) else ""
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}{where}"


def is_memory(error: BaseException) -> bool:
    """Whether memory was short; the libraries below torch each have words of their own for it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    return named or re.search(SHORT_OF_MEMORY, str(error)) is not None


def suggest(word: str, names: Iterable[str]) -> str | None:
    """The name nearest to a misspelt word, or None when nothing is near."""
    by_plain = {plain(name): name for name in names}
    start = plain(word)
    begun = [name for name in sorted(by_plain) if len(start) > 2 and name.startswith(start)]
    near = begun or get_close_matches(start, by_plain, n=1, cutoff=0.6)
    return by_plain[near[0]] if near else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest name, or nothing; ready to be appended to a message."""
    near = suggest(word, names)
    return f" Did you mean '{near}'?" if near else ""
