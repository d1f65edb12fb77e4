"""Keeping freed memory for the next step, where the C library would hand it back to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # option numbers of glibc's mallopt(3)
NEVER, ONE_GB = -1, 2**30
# What glibc itself reaches in a process that has freed blocks of 32 MB; its adjusting cannot be switched on again.
USUAL_MMAP, USUAL_TRIM = 32 * 2**20, 64 * 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """The allocator keeps what is freed, while this lasts; afterwards it hands back what is free.

    A training step asks for the same hundreds of megabytes as the one before. By default glibc maps large blocks
    anew each time, and the system clears every page again: 10 to 20 % of a step on a CPU. Without glibc nothing
    changes. Tensors on a GPU have an allocator of their own that works like this.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None  # elsewhere there is no such handle
    set_option, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if set_option is None or trim is None:
        yield
        return
    set_option(MMAP_THRESHOLD, ONE_GB)
    set_option(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        set_option(MMAP_THRESHOLD, USUAL_MMAP)
        set_option(TRIM_THRESHOLD, USUAL_TRIM)
        trim(0)
