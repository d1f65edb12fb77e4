"""The null device itself: what it counts, and the mistakes it shows."""

from __future__ import annotations

import json

import pytest
from null_device import missing, run

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LOOK = """
import json
import torch
from null_device.counting import counts, waits
from null_device.operators import Operators

found, gib = {}, 2**30
a = torch.ones(8, 8, device="cuda")
b = torch.ones(8, 8).pin_memory()
before = counts()
(a @ a).add_(1)
found["launches"] = counts()["launches"] - before["launches"]
b.cuda(non_blocking=True)
found["waits of a pinned copy"] = counts()["waits"] - before["waits"]
with waits() as places:
    a.sum().item()
found["places"] = sum(places.values())
try:
    a + torch.ones(8, 8)
except RuntimeError as error:
    found["two devices"] = str(error)
whole = torch.empty(60 * gib, dtype=torch.uint8, device="cuda")
found["peak"] = torch.cuda.max_memory_allocated() // gib
try:
    torch.empty(30 * gib, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    found["too much"] = type(error).__name__
with Operators() as operators:
    a.double().sum()
    torch.ones(2).sum()
found["operators"] = [[name, *dtypes] for name, dtypes in operators.seen]
found["devices"] = torch.cuda.device_count()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    return json.loads(run("-c", LOOK, devices=2))


def test_launches_are_counted(found):
    assert found["launches"] == 2


def test_a_wait_of_the_host_is_counted_and_a_pinned_copy_is_none(found):
    assert found["places"] == 1
    assert found["waits of a pinned copy"] == 0


def test_tensors_on_two_devices_do_not_meet(found):
    assert "two devices" in found["two devices"]


def test_memory_is_that_of_the_allocator_and_ends(found):
    assert found["peak"] == 60
    assert found["too much"] == "OutOfMemoryError"


def test_operators_on_the_device_are_listed_with_their_dtypes(found):
    assert found["operators"] == [
        ["aten._to_copy.default", "torch.float32", "torch.float64"],
        ["aten.sum.default", "torch.float64"],
    ]


def test_there_are_as_many_devices_as_asked_for(found):
    assert found["devices"] == 2


def test_a_failure_in_the_other_process_is_told():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run("-c", "1 / 0")
