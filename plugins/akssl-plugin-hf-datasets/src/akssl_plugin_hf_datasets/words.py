"""Pieces of messages: lists of names, the first cause of an error."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 300  # characters of another library's message that are shown


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names with commas, the first few of very many."""
    every = list(names)
    return ", ".join(every[:most]) + (", ..." if len(every) > most else "") if every else "none"


def one_line(error: BaseException) -> str:
    """The first cause of an error on one line, without a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
