"""Freed memory is kept while a run trains, and handed back afterwards."""

from __future__ import annotations

import ctypes
import resource
import sys

import pytest
import torch

from akssl_core.training import allocator
from akssl_core.training.allocator import kept_memory

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")


def faults(count: int = 20) -> int:
    """Pages the system had to map while large blocks were taken and freed again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(2**24)  # 64 MB, more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_large_blocks_are_mapped_once_instead_of_every_time():
    with kept_memory():
        faults()
        kept = faults()
    assert kept < faults() / 10


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_without_glibc_nothing_is_changed(monkeypatch, system):
    monkeypatch.setattr(allocator.os, "name", system)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    with kept_memory():
        assert torch.ones(3).sum() == 3
