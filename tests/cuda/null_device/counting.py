"""What the null device counts, read from within a process that runs on it."""

from __future__ import annotations

import ctypes
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .cudnn import calls

KINDS = ("kernels", "products", "memsets", "waits", "pageable", "collectives")  # the order of runtime.cpp
OURS = ("akssl_core", "akssl_plugin_")
_library = ctypes.CDLL(None)  # the device is preloaded
_library.null_device_count.restype = ctypes.c_long
_Hook = ctypes.CFUNCTYPE(None, ctypes.c_int)


def counts() -> Counter[str]:
    """So far in this process.

    `waits`: the host waited for the device. `launches`: kernels, matrix products, fills and calls of cuDNN. `pageable`:
    copies between the device and memory that is not pinned. `collectives`: calls of NCCL.
    """
    found = Counter({kind: _library.null_device_count(number) for number, kind in enumerate(KINDS)})
    found["launches"] = found.pop("kernels") + found.pop("products") + found.pop("memsets") + calls.total()
    return found


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Where the host waits for the device, while this lasts: the innermost two lines of ours, and how often."""
    found: Counter[str] = Counter()
    hook = _Hook(lambda _kind: found.update([_place()]))
    _library.null_device_hook(hook)
    try:
        yield found
    finally:
        _library.null_device_hook(_Hook())


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if any(name in frame.filename for name in OURS)]
    lines = [f"{_short(frame.filename)}:{frame.lineno} {frame.line}" for frame in reversed(frames[-2:])]
    return " <- ".join(lines) or "torch, in a thread of its own"


def _short(file: str) -> str:
    """A file of the core or of a plugin, from its package on."""
    return file[max(file.rfind(f"/{name}") for name in OURS) + 1 :]
