"""Types of settings are told in words that a user knows."""

from __future__ import annotations

import re
from typing import Annotated, Any

import pytest
from pydantic import Field

from akssl_core.config.describe import cells, type_name
from akssl_core.config.registry import KINDS
from akssl_core.config.schema import FilePath, LossRef, Schema
from akssl_core.plugins.manager import installed
from akssl_core.schedule import LearningRate, Schedule
from akssl_core.settings import EvaluateSpec, TrainSpec

PLAIN = r"(whole number|number|text|true|false|null|path|table|schedule|source|any value|name of an? \w+)"


class Inner(Schema):
    """A table."""


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], "(number, number)"),
        (Annotated[int, Field(gt=0)] | None, "whole number | null"),
        (Inner, "table"),
        (Inner | None, "table | null"),
        (dict[str, float], "table"),
        (Schedule, "number | schedule"),
        (LearningRate | None, "number | schedule | null"),
        (FilePath, "path"),
        (list[LossRef], "list of name of a loss"),
        (Any, "any value"),
    ],
)
def test_a_type_is_told_in_plain_words(annotation, words):
    assert type_name(annotation) == words


def test_no_setting_of_ours_leaks_the_name_of_a_class():
    installed().load_all()
    schemas = [c.Config for kind in KINDS for c, _ in installed().registry.components(kind)]
    for schema in [TrainSpec, EvaluateSpec, *schemas]:
        for name, words, *_ in cells(schema):
            choices = "Literal" in str(schema.model_fields[name].annotation) if name in schema.model_fields else False
            one = rf"(list of )?\(?{PLAIN}(, {PLAIN})*\)?"
            assert choices or re.fullmatch(rf"{one}( \| {one})*", words), (schema, name, words)
