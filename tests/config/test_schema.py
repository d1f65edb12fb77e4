from __future__ import annotations

from typing import Annotated, Literal

import pytest
import torch
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from akssl_core.config.schema import BackboneRef, Component, LossRef, Schema, first_mistake, readable, validate
from akssl_core.errors import ConfigError, PluginError


class Inner(Component):
    kind = "loss"
    name = "inner"

    class Config(Schema):
        temperature: float = Field(0.1, gt=0)

    def __init__(self, config, *args):
        self.config, self.args = config, args


class Outer(Component):
    kind = "loss"
    name = "outer"

    class Config(Schema):
        inner: LossRef = Field("inner")
        weights: tuple[float, ...] = (1.0,)


class Registry:
    known = {"inner": Inner, "outer": Outer}

    def get(self, kind, name):
        if name not in self.known:
            raise PluginError(f"no {kind} named '{name}'.")
        return self.known[name]


class Run(Schema):
    loss: LossRef
    losses: tuple[LossRef, ...] = ()
    epochs: int = Field(1, ge=1)
    backbone: BackboneRef | None = None


def check(raw):
    return validate(Run, raw, registry=Registry())


def test_a_name_alone_or_a_table_is_a_reference():
    assert check({"loss": "inner"}).loss.config.temperature == 0.1
    ref = check({"loss": {"name": "outer", "inner": {"name": "inner", "temperature": 0.2}}}).loss
    assert ref.config.inner.config.temperature == 0.2
    assert ref.config.inner.build(7).args == (7,)


def test_a_dumped_spec_validates_back_to_an_equal_one():
    spec = check({"loss": {"name": "outer", "inner": {"name": "inner", "temperature": 0.3}}, "losses": ["inner"]})
    dumped = spec.model_dump(mode="json")
    assert dumped["loss"] == {"name": "outer", "inner": {"name": "inner", "temperature": 0.3}, "weights": [1.0]}
    assert check(dumped) == spec


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"loss": {"name": "inner", "temprature": 1}},
            "loss: unknown setting 'temprature'. Did you mean 'temperature'?",
        ),
        ({"loss": "inner", "los": 1}, "unknown setting 'los'. Did you mean 'loss'?"),
        (
            {"loss": {"name": "outer", "inner": {"name": "inner", "temp": 1}}},
            "loss.inner: unknown setting 'temp'. Did you mean 'temperature'? Settings here: temperature.",
        ),
        ({"loss": "inner", "losses": ["inner", {"name": "inner", "x": 1}]}, "losses.1: unknown setting 'x'."),
        ({"loss": "inner", "epochs": 0}, "epochs: should be greater than or equal to 1, got 0"),
        ({"loss": "inner", "epochs": "many"}, "epochs: should be a valid integer"),
        ({"loss": "inner", "epochs": True}, "epochs: should be a number, got True"),
        ({"loss": {"name": "inner", "temperature": True}}, "loss.temperature: should be a number, got True"),
        ({"loss": "nothing"}, "loss: no loss named 'nothing'."),
        ({"loss": 5}, "loss: expected a name or a table with a 'name', got 5"),
        ({"loss": {"weights": 5}}, "loss: expected a name or a table with a 'name', got {'weights': 5}. Say of which"),
        ({}, "loss: is missing"),
        ({"loss": "inner", "backbone": {"name": "none"}}, "backbone: no backbone named 'none'."),
        ({"loss": {"name": "inner", "temperature": -1}}, "loss.temperature: should be greater than 0, got -1"),
    ],
)
def test_mistakes_name_the_path_the_value_and_the_nearest_name(raw, message):
    with pytest.raises(ConfigError) as caught:
        check(raw)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [True, False, [1.0, True], [[1.0, False]]])
def test_true_and_false_are_no_numbers(wrong):
    class Numbers(Schema):
        value: float | list[float] | list[list[float]] = 1.0
        told: bool | float = True
        shown: Annotated[str, BeforeValidator(str)] = "x"

    with pytest.raises(ConfigError, match="^value: should (be a number|hold numbers alone), got "):
        validate(Numbers, {"value": wrong}, registry=Registry())
    assert validate(Numbers, {"told": False, "shown": True}, registry=Registry()).shown == "True"


def test_several_mistakes_are_one_line_each():
    with pytest.raises(ConfigError) as caught:
        check({"loss": "nothing", "epochs": 0})
    assert len(str(caught.value).splitlines()) == 2


class Wide(Schema):
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    other: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


def test_a_setting_of_several_types_is_one_mistake():
    with pytest.raises(ConfigError) as caught:
        validate(Wide, {"threads": 0, "other": 0}, registry=Registry())
    assert str(caught.value).splitlines() == [
        f"{name}: should be greater than or equal to 1, or should be 'auto', got 0" for name in ("threads", "other")
    ]


def refuse_seven(number):
    if number == 7:
        raise ValueError("must not be 7")
    return number


class Checked(Schema):
    number: Annotated[int, AfterValidator(refuse_seven)] = 0

    @model_validator(mode="after")
    def _refuse_eight(self):
        if self.number == 8:
            raise ValueError("no table holds 8")
        return self


@pytest.mark.parametrize(
    ("number", "first", "line"),
    [(7, "number must not be 7", "number: must not be 7, got 7"), (8, "no table holds 8", "no table holds 8, got ")],
)
def test_what_a_check_of_ours_says_is_told_without_the_words_of_pydantic(number, first, line):
    with pytest.raises(ValidationError) as caught:
        Checked(number=number)
    assert first_mistake(caught.value) == first
    assert readable(caught.value)[0].startswith(line)


def test_a_schema_never_changes():
    with pytest.raises(ValueError, match="frozen"):
        Inner.Config().temperature = 3


def test_a_component_whose_own_code_fails_is_named():
    class Broken(Inner):
        def __init__(self, config):
            raise KeyError("half")

    Broken.name = "broken"
    ref = LossRef.model_construct(name="broken", config=Inner.Config(), component=Broken)
    with pytest.raises(PluginError, match=r"loss broken \(.*Broken\) could not be .*: KeyError: 'half' \(.*:\d+\)"):
        ref.build()


def test_what_memory_does_not_hold_names_the_largest_size():
    class Wide(Inner):
        class Config(Inner.Config):
            dim: int = 8
            width: int = 10**15

        def __init__(self, config):
            torch.empty(config.width)

    ref = LossRef.model_construct(name="wide", config=Wide.Config(), component=Wide)
    with pytest.raises(ConfigError, match=r"^loss wide: memory does not hold .*\. Lower loss\.width, now 10+\.$"):
        ref.build()
