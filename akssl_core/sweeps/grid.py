"""The runs of a sweep: one combination of method, settings and seed for each run."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..rundir.files import digest
from ..settings import dotted, merged, sections

LONGEST = 100  # characters of a folder's name


@dataclass(frozen=True, slots=True)
class Combination:
    """One run of a sweep: `settings` are those that vary, by dotted path."""

    method: str
    settings: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """The method, with the settings that vary."""
        return " ".join([self.method, *(f"{path}={json.dumps(value)}" for path, value in self.settings.items())])

    @property
    def folder(self) -> str:
        """The name of its run folder: `simsiam-optimizer.lr=0.1-seed=0`, the same for the same run."""
        parts = [f"{path}={_text(value)}" for path, value in self.settings.items()]
        name = "-".join([self.method, *parts, f"seed={self.seed}"])
        plain = re.sub(r"[^\w.=+-]+", "_", name, flags=re.ASCII)
        if plain == name and len(name) <= LONGEST:
            return name
        return f"{plain[:LONGEST]}-{digest(name.encode())[:8]}"

    def keywords(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of `akssl_core.run`, beside `out`: those of all runs, and this one's own."""
        given = merged(sections(common), sections(dotted(list(self.settings.items()))))
        return {**given, "method": {**given.get("method", {}), "name": self.method}, "seed": self.seed}


def combinations(
    methods: Sequence[str], seeds: Sequence[int], varied: Mapping[str, Sequence[Any]]
) -> list[Combination]:
    """Every method with every choice of settings and every seed; the first seed of all comes first.

    Raises:
        ConfigError: something is empty or named twice.
    """
    for name, values in {"methods": methods, "seeds": seeds, **varied}.items():
        texts = [_text(value) for value in values]
        if not texts:
            raise ConfigError(f"{name}: expected one value or more, got none.")
        if twice := [text for text in texts if texts.count(text) > 1]:
            raise ConfigError(f"{name}: {twice[0]} is there twice; every run of a sweep differs from the others.")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seeds: expected whole numbers, got {seed!r}.")
    choices = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    return [Combination(method, chosen, seed) for seed in seeds for method in methods for chosen in choices]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
