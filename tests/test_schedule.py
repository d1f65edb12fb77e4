from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from akssl_core import (
    FractionSchedule,
    LearningRate,
    NonNegativeSchedule,
    Now,
    PositiveSchedule,
    Schedule,
    cosine,
    linear,
)


def at(step: int, total: int = 100, per_epoch: int = 10) -> Now:
    return Now(step, per_epoch, total)


def test_now_counts_epochs_and_steps():
    assert at(25).epoch == 2.5
    assert at(25).epochs == 10
    assert at(25).next() == at(26)


def test_a_plain_number_is_constant_and_stays_a_number_when_dumped():
    schedule = Schedule.model_validate(0.3)
    assert [schedule(at(s)) for s in (0, 50, 100)] == [0.3, 0.3, 0.3]
    assert schedule.model_dump() == 0.3


@pytest.mark.parametrize(("t", "value"), [(0, 0.996), (25, 0.996586), (50, 0.998), (75, 0.999414), (100, 1.0)])
def test_momentum_cosine_matches_the_reference_values(t, value):
    assert cosine(0.996, 1.0)(at(t)) == pytest.approx(value, abs=1e-6)


def test_warm_up_then_cosine():
    """t < w: peak t / w; afterwards end + (peak - end) (1 + cos(pi (t - w) / (T - w))) / 2."""
    lr = LearningRate(start=2.0, warmup=1, end=0.5)
    assert lr(at(0)) == 0
    assert lr(at(5)) == 1.0
    assert lr(at(10)) == 2.0
    assert lr(at(40)) == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * 30 / 90)))
    assert lr(at(100)) == pytest.approx(0.5)


def test_a_learning_rate_falls_to_zero_unless_told_otherwise():
    assert LearningRate.model_validate(0.1)(at(100)) == pytest.approx(0, abs=1e-12)
    assert LearningRate(start=0.1, end=None)(at(100)) == 0.1
    again = LearningRate.model_validate(LearningRate(start=0.1, end=None).model_dump())
    assert again(at(100)) == 0.1, "null survives a round trip"


def test_per_epoch_schedules_change_between_epochs_only():
    lr = LearningRate(start=1.0, per="epoch")
    assert lr(at(10)) == lr(at(19)) != lr(at(20))
    assert lr(at(10)) == pytest.approx(0.5 * (1 + math.cos(math.pi * 1 / 10)))


def test_linear_over_some_epochs_then_constant():
    temperature = linear(0.04, 0.07, over=3)
    assert temperature(at(15)) == pytest.approx(0.055)
    assert temperature(at(30)) == temperature(at(99)) == pytest.approx(0.07)


def test_all_shapes_round_trip_through_plain_values():
    for schedule in (cosine(0.9, 1.0, warmup=2), linear(0.1, 0.2, over=5), Schedule(start=1, end=0, per="epoch")):
        assert Schedule.model_validate(schedule.model_dump(mode="json")) == schedule


def test_a_wrong_value_is_refused():
    with pytest.raises(ValueError, match="expected a number or a table with start"):
        Schedule.model_validate("fast")


def test_a_schedule_moves_between_its_corners():
    assert Schedule(start=0.3).corners == [0.3, 0.3]
    assert cosine(0.3, 0.1).corners == [0.3, 0.1]
    assert cosine(0.3, 0.1, warmup=2).corners == [0.0, 0.3, 0.1]


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (PositiveSchedule, {"start": 0.04, "end": 0.07}, {"start": 0.04, "warmup": 2}, "above 0 all the time"),
        (NonNegativeSchedule, {"start": 1.0, "warmup": 2}, {"start": 1.0, "end": -0.1}, "never be below 0"),
        (FractionSchedule, {"start": 0.99, "end": 1.0}, 1.5, "stay between 0 and 1"),
    ],
)
def test_a_schedule_within_bounds_is_so_all_the_time(kind, good, bad, words):
    whole = TypeAdapter(kind)
    assert whole.validate_python(good) == Schedule(**good)
    with pytest.raises(ValidationError, match=words):
        whole.validate_python(bad)


@pytest.mark.parametrize("lr", [-1, {"start": 0.1, "end": -0.1}, {"start": 0.1, "warmup": 1, "warmup_from": -0.1}])
def test_a_learning_rate_never_falls_below_zero(lr):
    with pytest.raises(ValueError, match="should never be below 0"):
        LearningRate.model_validate(lr)
