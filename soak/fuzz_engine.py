"""A small fuzzer that coverage guides: inputs that reach a new line-to-line step of akssl_core are kept and mutated.

An input fails when it raises anything but an error that the user can mend, takes more memory than a limit, or more
seconds than a limit. Each failure is told once: by its type and the innermost function of akssl_core.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import click

import akssl_core
from akssl_core.errors import AksslError

CORE = str(Path(akssl_core.__file__).parent)
MEMORY = 1 << 30  # bytes that one input may take
LONGEST = 1 << 16  # of a mutated input in bytes
NUMBERS = (b"0", b"-1", b"1e400", b"NaN", b"4294967296", b"9223372036854775807", b"1" * 5000, b"null", b"[]", b"{}")
EDGES = ("\x00", "\x7f", "\x80", "\xff")


class TooSlow(BaseException):
    """An input took longer than its target allows; no handler of ordinary errors swallows this."""


@dataclass(frozen=True)
class Target:
    """One reader: what it is given, and how it is called in a folder of its own."""

    name: str
    run: Callable[[bytes, Path], object]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes] = ()
    seconds: float = 5.0  # that one input may take
    repair: Callable[[bytes], bytes] = bytes  # makes lengths and the like fit again after a mutation
    allowed: tuple[type[BaseException], ...] = ()


@dataclass(frozen=True)
class Crash:
    """An input that failed."""

    key: str
    text: str
    data: bytes


@dataclass
class Outcome:
    """What one target was put through."""

    target: str
    executions: int = 0
    seconds: float = 0.0
    kept: int = 0
    edges: set[tuple[str, int, int]] = field(default_factory=set)
    crashes: dict[str, Crash] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        """Lines of akssl_core that were reached."""
        return len({(file, line) for file, _, line in self.edges})


def attempt(target: Target, data: bytes, folder: Path) -> Crash | None:
    """Give one input to a target; what went wrong, if anything did."""
    try:
        with limits(target.seconds):
            target.run(data, folder)
    except (AksslError, click.ClickException, *target.allowed):
        return None
    except (Exception, TooSlow, RecursionError) as error:
        return Crash(_key(error), "".join(traceback.format_exception(error))[-4000:], data)
    return None


def _key(error: BaseException) -> str:
    """Type and innermost place in akssl_core: what tells two defects apart."""
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(CORE)]
    where = f"{Path(places[-1].filename).relative_to(CORE)}:{places[-1].name}" if places else "?"
    return f"{type(error).__name__} in {where}"


@contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Within it, memory beyond `MEMORY` more is a MemoryError, and time past `seconds` a TooSlow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, _too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)


def _too_slow(*_: object) -> None:
    raise TooSlow("took too long")


@contextmanager
def traced(edges: set[tuple[str, int, int]]) -> Iterator[None]:
    """Collect which line of akssl_core follows which."""

    def local(last: int) -> Callable[[FrameType, str, Any], Any]:
        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if event == "line":
                edges.add((frame.f_code.co_filename, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return local(frame.f_lineno) if frame.f_code.co_filename.startswith(CORE) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


def fuzz(target: Target, *, seconds: float, most: int | None = None, seed: int = 0) -> Outcome:
    """Try the seeds of a target, then mutations of what reached something new, until the time or the number is up."""
    random, outcome = Random(seed), Outcome(target.name)
    kept: list[bytes] = []
    queue = list(target.seeds())
    started = time.perf_counter()
    while time.perf_counter() - started < seconds and (most is None or outcome.executions < most):
        data = queue.pop(0) if queue else mutated(random, kept, target)
        reached: set[tuple[str, int, int]] = set()
        with tempfile.TemporaryDirectory(prefix="akssl-fuzz-") as folder, traced(reached):
            crash = attempt(target, data, Path(folder))
        outcome.executions += 1
        if crash is not None:
            outcome.crashes.setdefault(crash.key, crash)
        if not reached <= outcome.edges or not kept:
            outcome.edges |= reached
            kept.append(data)
    outcome.seconds, outcome.kept = time.perf_counter() - started, len(kept)
    return outcome


def mutated(random: Random, kept: Sequence[bytes], target: Target) -> bytes:
    """One of the kept inputs, later ones more often, changed in a few places."""
    data = kept[max(random.randrange(len(kept)), random.randrange(len(kept)))]
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        data = random.choice(MUTATIONS)(random, data, random.choice(kept), target.words)
    return target.repair(data[:LONGEST]) if random.random() < 0.7 else data[:LONGEST]


def _flip(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    if not data:
        return b"\0"
    i = random.randrange(len(data))
    value = data[i] ^ (1 << random.randrange(8)) if random.random() < 0.7 else ord(random.choice(EDGES))
    return data[:i] + bytes([value]) + data[i + 1 :]


def _cut(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    i, j = _span(random, data)
    return data[:i] + data[j:]


def _repeat(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    i, j = _span(random, data)
    return data[:j] + data[i:j] * random.choice((1, 2, 50, 2000)) + data[j:]


def _splice(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    (i, j), (k, m) = _span(random, data), _span(random, other)
    return data[:i] + other[k:m] + data[j:]


def _word(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    i, j = _span(random, data)
    return data[:i] + random.choice(words or NUMBERS) + data[random.choice((i, j)) :]


def _value(random: Random, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    """Another value where a number, or a text in quotes, stands."""
    found = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"]*"', data[:LONGEST]))
    if not found:
        return _word(random, data, other, words)
    match = random.choice(found)
    return data[: match.start()] + random.choice((*NUMBERS, *words)) + data[match.end() :]


def _span(random: Random, data: bytes) -> tuple[int, int]:
    i = random.randint(0, len(data))
    return i, min(len(data), i + random.choice((1, 2, 4, 16, 64, 1024)))


MUTATIONS = (_flip, _cut, _repeat, _splice, _word, _value, _value)
