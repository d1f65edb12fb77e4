"""Freed memory is kept while a run trains, and handed back afterwards."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from akssl_core.training import hardware
from akssl_core.training.hardware import kept_memory

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")


FAULTS = """
import resource
import torch
from akssl_core.training.hardware import kept_memory

def faults(count=20):  # pages the system had to map while large blocks were taken and freed again and again
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(2**24)  # 64 MB, more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept_memory():
    faults()
    kept = faults()
print(kept, faults())
"""


@glibc
@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_large_blocks_are_mapped_once_instead_of_every_time():
    # In a process of its own: where memory once ran out, glibc serves the thread from a heap without large blocks.
    shown = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    kept, mapped = map(int, shown.split())
    assert kept < mapped / 10


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_without_glibc_nothing_is_changed(monkeypatch, system):
    monkeypatch.setattr(hardware.os, "name", system)
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: object())
    with kept_memory():
        assert torch.ones(3).sum() == 3
