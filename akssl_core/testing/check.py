"""Checks: a name, what it means, how to mend what it finds, and a function that finds it."""

from __future__ import annotations

import os
import traceback
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

HERE = Path(__file__).parent
Function = TypeVar("Function", bound=Callable[[Any], None])


class CheckFailed(AssertionError):
    """A check has found something."""


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
            return Outcome(self.name, "failed", self.meaning, str(failure), self.cure)
        except Exception as error:
            found = f"{type(error).__name__}: {error} ({_place(error)})"
            return Outcome(self.name, "failed", self.meaning, found, "mend the error, then check again")
        return Outcome(self.name, "passed", self.meaning, "", "")


CHECKS: list[Check] = []


def rule(kind: str, *, cure: str, slow: bool = False) -> Callable[[Function], Function]:
    """Make a function of a subject a check of every component of one kind; its docstring says what must hold."""

    def register(function: Function) -> Function:
        CHECKS.append(Check(kind, " ".join((function.__doc__ or "").split()), cure, slow, function))
        return function

    return register


def _place(error: Exception) -> str:
    """File and line of the innermost frame that belongs neither to torch nor to this kit."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and Path(f.filename).parent != HERE]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def fail(message: str) -> NoReturn:
    """End a check with what it has found."""
    raise CheckFailed(message)


def expect(condition: bool, message: str) -> None:
    """Fail with a message unless the condition holds."""
    if not condition:
        fail(message)
