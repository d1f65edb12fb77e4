"""Recipes beside what their sources say, setting by setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..config.schema import Ref, leaves
from ..method import Method
from ..plugins.manager import Plugins
from ..schedule import Schedule
from .check import NotApplicable, expect, few, rule
from .subject import MethodSubject
from .toys import spec_of


@rule("method", cure="give the recipe the published value, or say in `differs` why it has another")
def recipes_are_as_published(subject: MethodSubject) -> None:
    """Every recipe with a source has the source's values, and where it has not, `published` says why."""
    component = subject.component
    if not component.published:
        raise NotApplicable("the method names no sources of its recipes (published = {...})")
    for recipe, source in component.published.items():
        expect(recipe in component.recipes, f"there is no recipe '{recipe}', and published has one")
        for path, theirs, ours in compared(component, recipe, subject.plugins):
            told, same = path in source.differs, _same(theirs, ours)
            expect(same or told, f"recipe '{recipe}': {path} is {ours}, published is {theirs}, and nothing says why")
            expect(not same or not told, f"recipe '{recipe}': {path} is as published, and `differs` says otherwise")
        known = {path for path, _ in leaves(source.values)} | source.differs.keys()
        untold = [path for path, _ in leaves(component.recipes[recipe]) if path not in known and not _is_name(path)]
        expect(not untold, f"recipe '{recipe}' sets what published says nothing about: {few(untold)}")


def compared(method: type[Method], recipe: str, plugins: Plugins) -> Iterator[tuple[str, Any, Any]]:
    """Each published setting of a recipe: its path, the source's value and the recipe's."""
    spec = spec_of(method.name, plugins=plugins, recipe=recipe)
    for path, value in leaves(method.published[recipe].values):
        yield path, value, _setting(spec, path)


def _setting(spec: Any, path: str) -> Any:
    """One setting of a resolved run, as a recipe would write it."""
    for name in path.split("."):
        if isinstance(spec, Mapping):  # named groups of views
            spec = spec[name]
        else:
            spec = getattr(spec.config if isinstance(spec, Ref) and name != "name" else spec, name)
    if isinstance(spec, Schedule):
        return spec.model_dump(mode="json")
    return list(spec) if isinstance(spec, tuple) else spec


def _same(theirs: Any, ours: Any) -> bool:
    """Whether two values are equal; numbers but for rounding."""
    if isinstance(theirs, int | float) and isinstance(ours, int | float):
        return math.isclose(theirs, ours, rel_tol=1e-9)
    return bool(theirs == ours)


def _is_name(path: str) -> bool:
    """Whether a path names a component of ours by which a source's words are put into practice."""
    return path in ("method.loss.name", "augmentation.name")
