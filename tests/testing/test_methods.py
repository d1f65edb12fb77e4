"""The conformance kit on methods: a right one passes every check, each broken one fails the check that is for it."""

from __future__ import annotations

import unittest
from dataclasses import replace

import pytest
from broken_methods import BROKEN, Contrast, OneDraw, Right, SignFlipped

from akssl_core.plugins.manager import Plugins
from akssl_core.testing import CheckFailed, checks


@pytest.fixture(scope="module")
def manager():
    plugins = Plugins()
    plugins.entries = []
    plugins.registry.owner = "tests"
    for component in (Contrast, Right, OneDraw):
        plugins.registry.add(component)
    return plugins


def kit(component, manager):
    """The checks of a method that takes the place of the right one."""
    manager.registry._added["method", "right"] = component, "tests"
    return checks("right", plugins=manager)


NAMES = [str(check) for check in checks(Right)]


@pytest.mark.parametrize("name", NAMES)
def test_a_right_method_passes(name, manager):
    (check,) = [check for check in kit(Right, manager) if str(check) == name]
    check()


@pytest.mark.parametrize("component", BROKEN, ids=lambda c: c.__name__)
def test_a_broken_method_is_caught_by_the_check_that_is_for_it(component, manager):
    (check,) = [check for check in kit(component, manager) if str(check) == BROKEN[component]]
    outcome = check.outcome()
    assert outcome.status == "failed", outcome
    assert outcome.found
    assert outcome.cure


def test_every_check_catches_something():
    assert set(NAMES) - set(BROKEN.values()) <= {"targets_get_no_gradient"}, "each check is shown to fail"


def test_a_check_that_fails_raises_what_pytest_reports(manager):
    (check,) = [check for check in kit(SignFlipped, manager) if str(check) == "views_of_one_image_attract"]
    with pytest.raises(CheckFailed, match="after 24 steps the loss is"):
        check()


def test_a_source_may_tell_groups_of_views(manager):
    groups, source = {"global": {"scale": [0.3, 1.0], "blur": 0.1}}, Right.published["default"]
    told = {**source.values, "augmentation": {"groups": groups}}

    class Grouped(Right):
        recipes = {"default": {**Right.recipes["default"], "augmentation": {"name": "views", "groups": groups}}}
        published = {"default": replace(source, values=told)}

    (check,) = [check for check in kit(Grouped, manager) if str(check) == "recipes_are_as_published"]
    check()


def test_a_check_that_does_not_apply_is_skipped(manager):
    class NoTarget(Right):
        def __init__(self, config, backbone):
            super().__init__(config, backbone)
            self.target = None

    (check,) = [check for check in kit(NoTarget, manager) if str(check) == "slow_copies_follow_their_momentum"]
    with pytest.raises(unittest.SkipTest, match="no slow copy"):
        check()
    assert check.outcome().status == "not applicable"
