"""A training step of every method on a CUDA device: none fails, and each costs what `budget.json` says."""

from __future__ import annotations

import json

import pytest
import torch
from budget import EXACT, FILE, KEPT, configurations, differences, measure, methods
from null_device import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
CURE = "\nIf that was meant: python tests/cuda/budget.py --write"


@pytest.fixture(scope="module")
def costs():
    names, requests = zip(*configurations(), strict=True)
    return dict(zip(names, measure(requests), strict=True))


@pytest.fixture(scope="module")
def budget():
    return json.loads(FILE.read_text())


@pytest.mark.parametrize("method", methods())
def test_a_step_costs_what_it_may(method, costs, budget):
    kept = KEPT if budget["torch"] == torch.__version__ else EXACT  # the others follow torch's own operators
    of_method = {name: cost for name, cost in costs.items() if name.split()[0] == method}
    found = [
        text for name, cost in of_method.items() for text in differences(name, cost, budget["steps"].get(name), kept)
    ]
    assert len(of_method) >= 4
    assert not found, f"{method}:\n" + "\n".join(found) + CURE


def test_the_budget_lists_no_more_than_is_measured(budget):
    assert set(budget["steps"]) == {name for name, _ in configurations()}


@pytest.mark.slow  # a minute and a half
def test_no_combination_of_backbone_precision_and_optimizer_fails():
    names, requests = zip(*configurations(every=True), strict=True)
    found = dict(zip(names, measure(requests), strict=True))
    assert not {name: cost["error"] for name, cost in found.items() if "error" in cost}
