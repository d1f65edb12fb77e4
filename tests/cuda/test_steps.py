"""A training step of every method on a CUDA device: none fails, and each costs what `budget.json` says."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from budget import EXACT, KEPT, configurations, differences, measure, read
from null_device import missing

on_the_device = pytest.mark.skipif(missing() is not None, reason=str(missing()))
CURE = "\nIf that was meant: python tests/cuda/budget.py --write"


def measured(**which):
    names, requests = zip(*configurations(**which), strict=True)
    return dict(zip(names, measure(requests), strict=True))


@pytest.fixture(scope="module")
def budget():
    return read()


@on_the_device
def test_a_step_costs_what_it_may(budget):
    """One test, since all is measured in one process."""
    kept = KEPT if budget["torch"] == torch.__version__ else EXACT  # the others follow torch's own operators
    costs = measured().items()
    found = [text for name, cost in costs for text in differences(name, cost, budget["steps"].get(name), kept)]
    assert not found, "\n".join(found) + CURE


def test_the_budget_lists_no_more_than_is_measured(budget):
    assert set(budget["steps"]) == {name for name, _ in configurations()}
    assert min(Counter(name.split()[0] for name in budget["steps"]).values()) >= 4


def test_a_wait_more_is_told_with_its_place_and_a_launch_more_in_a_hundred_is_not():
    allowed = {"waits": 0, "pageable": 0, "launches": 100, "collectives": 0, "peak_mib": 100}
    found = {**allowed, "launches": 101, "waits": 2, "places": {"engine.py:1 x.item()": 2}}
    assert list(differences("name", found, allowed)) == ["name: waits 0 -> 2", "    2 x engine.py:1 x.item()"]
    assert list(differences("name", {**allowed, "launches": 104}, allowed)) == ["name: launches 100 -> 104"]
    assert list(differences("name", {"error": "why"}, allowed)) == ["name: why"]
    assert list(differences("name", found, None)) == ["name: not in budget.json"]


@on_the_device
@pytest.mark.slow  # two minutes
def test_no_combination_of_backbone_precision_and_optimizer_fails():
    assert not {name: cost["error"] for name, cost in measured(every=True).items() if "error" in cost}
