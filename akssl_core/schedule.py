"""Time and the numbers that change with it. Schedules are pure functions of `now`: nothing to save."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from .config.schema import Schema
from .errors import shown


@dataclass(frozen=True, slots=True)
class Now:
    """Where training stands: optimizer steps done, out of how many."""

    step: int
    """Optimizer steps done."""
    steps_per_epoch: int
    """Steps of one pass over the images."""
    total_steps: int
    """Steps of the whole run."""

    @property
    def epoch(self) -> float:
        """12.5 is half-way through the 13th epoch."""
        return self.step / self.steps_per_epoch

    @property
    def epochs(self) -> float:
        """The length of the whole run in epochs."""
        return self.total_steps / self.steps_per_epoch

    def next(self) -> Now:
        """One optimizer step later."""
        return replace(self, step=self.step + 1)


class Schedule(Schema):
    """A number that may change while training; a plain number in a config is a constant one.

    The value ramps linearly from `warmup_from` to `start` over `warmup` epochs, then moves from `start`
    to `end` over the rest of the run (or over `over` epochs, after which it stays at `end`).
    """

    type_in_words = "number | schedule"
    start: float = Field(description="value after the warm-up")
    end: float | None = Field(None, description="value at the end; null: stays at start")
    shape: Literal["cosine", "linear"] = Field("cosine", description="path from start to end")
    warmup: float = Field(0.0, ge=0, description="epochs of linear ramp from warmup_from to start")
    warmup_from: float = Field(0.0, description="value at step 0 when there is a warm-up")
    over: float | None = Field(None, gt=0, description="epochs from start to end; null: the whole run")
    per: Literal["step", "epoch"] = Field("step", description="how often the value changes")

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, raw: Any) -> Any:
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            return {"start": raw}
        if not isinstance(raw, Mapping | Schedule):
            message = f"expected a number or a table with start, end, warmup, ..., got {shown(raw)}"
            raise PydanticCustomError("akssl", "{message}", {"message": message})
        return raw

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> float | dict[str, Any]:
        full: Mapping[str, Any] = handler(self)
        fields = type(self).model_fields
        given = {k: v for k, v in full.items() if k == "start" or v != fields[k].default}
        return self.start if given.keys() == {"start"} else given

    def __call__(self, now: Now) -> float:
        """The value at `now`; with `per="epoch"` the one of the epoch's first step."""
        step = float(now.step)
        if self.per == "epoch":
            step = float(now.step // now.steps_per_epoch * now.steps_per_epoch)
        ramp = self.warmup * now.steps_per_epoch
        if step < ramp:
            return self.warmup_from + (self.start - self.warmup_from) * step / ramp
        if self.end is None:
            return self.start
        total = now.total_steps - ramp if self.over is None else self.over * now.steps_per_epoch
        done = min((step - ramp) / total, 1.0) if total > 0 else 1.0
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1 - done
        return self.end + (self.start - self.end) * left

    @property
    def corners(self) -> list[float]:
        """The values between which it moves."""
        ends = [self.start, self.start if self.end is None else self.end]
        return [self.warmup_from, *ends] if self.warmup else ends

    def peak(self, epochs: float) -> float:
        """The largest value in a run of so many epochs, which may end before the warm-up does."""
        reached = self.warmup_from + (self.start - self.warmup_from) * min(1.0, epochs / (self.warmup or epochs))
        return max(self.warmup_from if self.warmup else reached, reached, reached if self.end is None else self.end)


def _positive(schedule: Schedule) -> Schedule:
    if min(schedule.corners) <= 0:
        raise ValueError("should be above 0 all the time (with a warmup, warmup_from as well)")
    return schedule


def _not_negative(schedule: Schedule) -> Schedule:
    if min(schedule.corners) < 0:
        raise ValueError("should never be below 0")
    return schedule


def _fraction(schedule: Schedule) -> Schedule:
    if not all(0 <= value <= 1 for value in schedule.corners):
        raise ValueError("should stay between 0 and 1")
    return schedule


PositiveSchedule = Annotated[Schedule, AfterValidator(_positive)]
"""A schedule above 0 all the time, for a field of a schema: a temperature."""
NonNegativeSchedule = Annotated[Schedule, AfterValidator(_not_negative)]
"""A schedule that never falls below 0: the weight of a loss."""
FractionSchedule = Annotated[Schedule, AfterValidator(_fraction)]
"""A schedule between 0 and 1: the momentum of a teacher, which keeps this share of itself each step."""


class LearningRate(Schedule):
    """A learning rate: unless told otherwise it falls to zero by a cosine, the field's custom."""

    end: float | None = Field(0.0, description="value at the end; null: stays at start")

    @model_validator(mode="after")
    def _never_below_zero(self) -> LearningRate:
        _not_negative(self)
        return self


def cosine(start: float, end: float, *, warmup: float = 0.0) -> Schedule:
    """A cosine from `start` to `end` over the run, for the default of a schema's field."""
    return Schedule(start=start, end=end, warmup=warmup)


def linear(start: float, end: float, *, over: float | None = None) -> Schedule:
    """A straight line from `start` to `end`, over the run or over so many epochs."""
    return Schedule(start=start, end=end, shape="linear", over=over)
