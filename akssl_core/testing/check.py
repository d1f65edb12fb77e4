"""Checks: a name, what it means, how to mend what it finds, and a function that finds it."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar

from ..errors import told

Function = TypeVar("Function", bound=Callable[[Any], None])


class CheckFailed(AssertionError):
    """A check has found something; `cure` mends just that, where the cure of the check says too little."""

    def __init__(self, found: str, cure: str = "") -> None:
        super().__init__(found)
        self.cure = cure


class NotApplicable(unittest.SkipTest):
    """Why a check says nothing about this component; pytest reports it as skipped."""


@dataclass(frozen=True)
class Outcome:
    """How a check went."""

    name: str
    status: Literal["passed", "failed", "not applicable"]
    meaning: str
    found: str
    """The reason where it did not pass."""
    cure: str


@dataclass(frozen=True)
class Check:
    """One check of one component. Calling it raises `CheckFailed` or, where it does not apply, `unittest.SkipTest`."""

    kind: str
    """Of the components that must pass it."""
    meaning: str
    """Holds where the check passes."""
    cure: str
    """The way to mend what it finds."""
    slow: bool
    function: Callable[[Any], None]
    subject: Any = None

    @property
    def name(self) -> str:
        """The name of the check, as pytest and the table show it."""
        return self.function.__name__

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        """Run it."""
        self.function(self.subject)

    def outcome(self) -> Outcome:
        """How the check goes, for a table; an error inside the component is a failure."""
        try:
            self()
        except NotApplicable as reason:
            return Outcome(self.name, "not applicable", self.meaning, str(reason), "")
        except CheckFailed as failure:
            return Outcome(self.name, "failed", self.meaning, str(failure), failure.cure or self.cure)
        except Exception as error:
            return Outcome(self.name, "failed", self.meaning, told(error), "mend the error, then check again")
        return Outcome(self.name, "passed", self.meaning, "", "")


CHECKS: list[Check] = []


def rule(kind: str, *, cure: str, slow: bool = False) -> Callable[[Function], Function]:
    """Make a function of a subject a check of every component of one kind; its docstring says what must hold."""

    def register(function: Function) -> Function:
        CHECKS.append(Check(kind, " ".join((function.__doc__ or "").split()), cure, slow, function))
        return function

    return register


def fail(message: str, cure: str = "") -> NoReturn:
    """End a check with what it has found, and how to mend it where that is not always the same."""
    raise CheckFailed(message, cure)


def expect(condition: bool, message: str, cure: str = "") -> None:
    """Fail with a message unless the condition holds."""
    if not condition:
        fail(message, cure)


def few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
