"""Why a run cannot go on, in words that help: memory, other processes, and processes that read images."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from torch.utils.checkpoint import CheckpointError

from ..dist import lost_peer
from ..errors import AksslError, ConfigError, RunStopped, is_memory, told
from .engine import Engine

DIFFERS = (
    "a block of the backbone did other things when it was computed again than at first: its forward pass depends on "
    "more than its input, its weights and torch's random numbers. Draw with torch in place of 'random' or numpy, keep "
    "no state outside buffers, or leave train.recompute out."
)


@contextmanager
def explain_faults(engine: Engine) -> Iterator[None]:
    """Turn an error while a run trains into a RunStopped, where the cause is known.

    Raises:
        ConfigError: blocks cannot be computed again.
        RunStopped: memory or file numbers ran out, another process has ended, one that reads images was killed, or
            the method's own code failed.
    """
    try:
        yield
    except AksslError:
        raise
    except Exception as error:
        known = isinstance(error, RuntimeError | MemoryError | OSError | EOFError) and not isinstance(error, RunStopped)
        if known and (reason := _reason(error, engine)):
            raise RunStopped(f"{reason} 'akssl resume RUN_DIR' goes on from the last checkpoint.") from error
        if isinstance(error, CheckpointError):
            raise ConfigError(f"train.recompute: {DIFFERS}") from error
        if isinstance(error, RunStopped) or not _is_of_method(error, engine):
            raise
        raise RunStopped(f"the method {engine.method.name} failed in step {engine.now.step}: {told(error)}") from error


def _is_of_method(error: Exception, engine: Engine) -> bool:
    """Whether the error arose in the method's code, or in what that called."""
    return any(frame.f_locals.get("self") is engine.method for frame, _ in walk_tb(error.__traceback__))


def _reason(error: Exception, engine: Engine) -> str | None:
    text = str(error)
    if is_memory(error):
        return _of_memory(text, engine)
    if lost_peer(error):
        return f"another process of this run ended after step {engine.now.step}, so that this one cannot go on."
    if isinstance(error, ConnectionError | EOFError):
        return f"a process that reads images ended after step {engine.now.step} ({text or 'no answer'})."
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many files were open after step {engine.now.step}. Allow more (ulimit -n), or use fewer workers."
    if found := re.search(r"DataLoader worker \(pid[^)]*\)[^.]*", text):
        return f"a process that reads images ended after step {engine.now.step} ({found[0].strip()}). Is memory short?"
    return None


def _of_memory(text: str, engine: Engine) -> str:
    """How much was asked for, what the weights and their optimizer take, and what to lower."""
    asked = re.search(r"allocate (\d+ bytes|[\d.]+ [KMG]iB)", text)
    trained = sum(p.numel() * p.element_size() for p in engine.method.parameters() if p.requires_grad)
    kept = sum(t.numel() * t.element_size() for t in engine.method.state_dict().values())
    fixed = kept + 3 * trained  # gradients, and up to two moments an optimizer keeps
    return (
        f"out of memory after step {engine.now.step}{f' (it asked for {asked[1]})' if asked else ''}. "
        f"Weights, gradients and optimizer take up to {fixed / 2**20:.1f} MiB; the rest grows with the batch of "
        f"{engine.batch_size} images. Use a smaller batch, smaller images or a smaller backbone in a new run."
    )
