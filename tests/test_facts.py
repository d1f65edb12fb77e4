"""What follows from the length of a run and the number of its images."""

from __future__ import annotations

import pytest

from akssl_core import Facts, Schedule


def facts(images=10_000, epochs=4.0):
    return Facts(images, 64, 64, 32, epochs, {"global": 2})


@pytest.mark.parametrize(("images", "most"), [(10_000, 1024), (2047, 256), (1, 256)])
def test_outputs_are_a_power_of_two_that_the_images_can_fill(images, most):
    assert facts(images).outputs(most) is None
    assert facts(images).outputs(most + 1).value == most


def test_a_schedule_ends_with_the_run_at_the_latest():
    rising = Schedule(start=0.04, end=0.07, shape="linear", over=30)
    assert facts(epochs=30).within_run(rising) is None
    assert facts(epochs=0.5).within_run(rising).value["over"] == 0.5
    assert facts().within_run(Schedule(start=0.04)) is None


def test_what_would_last_the_whole_run_lasts_a_tenth_of_it():
    assert facts().part_of_run(4).value == 0.4
    assert facts().part_of_run(3.9) is facts().part_of_run(None) is None
