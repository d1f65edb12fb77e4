"""Schemas: strict settings, components referred to by name at any depth, readable errors, and what has changed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ..errors import AksslError, ConfigError, DataError, PluginError, did_you_mean, is_memory, shown, told

MOST_LINES = 10  # mistakes that a message tells

HARMLESS = "resume: harmless"
"""In the type of a field, `Annotated[int, HARMLESS]`: it moves no weight of the steps so far, or, like more epochs,
it is what people resume for."""


def user_path(path: str | Path) -> Path:
    """A path with `~` expanded, which a shell leaves as it is in `--out=~/runs`.

    Raises:
        ConfigError: it is no path, or an empty text, which would mean the current folder.
    """
    if not isinstance(path, str | Path) or path == "":
        raise ConfigError(f"expected the path of a file or a folder, got {shown(path)}.")
    return Path(os.path.expanduser(path))


def absolute_path(path: str | Path) -> Path:
    """A path that holds from any folder: `~` expanded, and a relative one taken from the current folder.

    Raises:
        ValueError: there is no current folder.
    """
    try:
        return user_path(path).absolute()
    except FileNotFoundError:
        raise ValueError("should be an absolute path, for the current folder has been deleted") from None


FilePath = Annotated[Path, AfterValidator(absolute_path)]
"""The type of every setting that names a file or a folder: `~` is expanded, a relative path becomes absolute."""


class Schema(BaseModel):
    """Base of every schema: an unknown key is an error, an instance never changes."""

    type_in_words: ClassVar[str] = "table"
    """The type of a field that holds these settings, in words."""
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _refuse_truth(cls, value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
        """A number that is given as `true` or `false` is a mistake, where pydantic reads 1 or 0."""
        found = parse(value)
        if _truth_for_number(value, found):
            one = isinstance(value, bool)
            raise PydanticCustomError("number", "should be a number" if one else "should hold numbers alone")
        return found

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, raw: Any, info: ValidationInfo) -> Any:
        """Name the unknown key, the nearest right one and all that are allowed.

        Settings of a component that nobody named are those of the field's default (`loss: {temperature: 0.2}`).
        """
        if not isinstance(raw, Mapping):
            return raw
        allowed = [field.alias or name for name, field in cls.model_fields.items()]
        for key in raw:
            if key not in allowed and key not in cls.model_fields:
                settings = ", ".join(sorted(allowed)) or "none"
                hint = _one_level_down(cls, str(key), info) or did_you_mean(str(key), allowed)
                message = f"unknown setting '{key}'.{hint} Settings here: {settings}."
                raise PydanticCustomError("akssl", "{message}", {"message": message})
        defaults = {
            key: cls.model_fields[key].default
            for key, value in raw.items()
            if key in cls.model_fields and isinstance(value, Mapping) and "name" not in value
        }
        named = {key: {"name": name, **raw[key]} for key, name in defaults.items() if isinstance(name, str)}
        return {**raw, **named}


class Component:
    """Something a plugin can register: it has a kind, a name and a schema."""

    kind: ClassVar[str]
    """The base class says it: "method", "backbone", "loss", "augmentation", "data", "decoder", "optimizer" ..."""
    name: ClassVar[str]
    """The word that a user types."""
    Config: ClassVar[type[Schema]] = Schema
    """The schema of its settings."""

    def __init__(self, config: Any) -> None:
        self.config = config


class Lookup(Protocol):
    """The part of a registry that resolving a name needs."""

    def get(self, kind: str, name: str) -> type[Component]:
        """The component of this kind and name."""


class Ref(Schema):
    """A component by name with its validated settings: `"resnet18"` or `{"name": "resnet18", ...}`."""

    kind: ClassVar[str]
    name: str
    config: SerializeAsAny[Schema]
    component: type[Component] = Field(exclude=True, repr=False)

    def __init_subclass__(cls, *, kind: str = "", **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.kind = kind or cls.kind

    @classmethod
    def field(cls, name: str, *, description: str) -> Any:
        """A field of a schema that refers to this component unless the user names another."""
        return Field(name, description=description)

    @model_validator(mode="wrap")
    @classmethod
    def _look_up(cls, raw: Any, handler: Any, info: ValidationInfo) -> Ref:
        if isinstance(raw, cls):
            return raw
        if isinstance(raw, str):
            raw = {"name": raw}
        if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
            which = f" Say of which {cls.kind}: add its name." if isinstance(raw, Mapping) and "name" not in raw else ""
            message = f"expected a name or a table with a 'name', got {shown(raw)}.{which}"
            raise PydanticCustomError("akssl", "{message}", {"message": message})
        settings = {key: value for key, value in raw.items() if key != "name"}
        registry: Lookup = (info.context or {})["registry"]
        try:
            component = registry.get(cls.kind, raw["name"])
        except AksslError as error:
            raise PydanticCustomError("akssl", "{message}", {"message": str(error)}) from error
        config = component.Config.model_validate(settings, context=info.context)
        return cls.model_construct(name=component.name, config=config, component=component)

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.config.model_dump(mode="json")}

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The component itself, made from these settings.

        Raises:
            ConfigError: it could not be made, and a file or folder that a setting names is gone, or memory is short.
            PluginError: its own code failed.
        """
        return self.made_by(self.component, *args, **kwargs)

    def made_by(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `build`, by another function of the settings."""
        try:
            return make(self.config, *args, **kwargs)
        except (OSError, AksslError) as error:
            gone = [(path, value) for path, value in leaves(self.config.model_dump()) if _is_gone(value)]
            if not gone or isinstance(error, DataError):  # of data, which say it themselves
                raise
            path, value = f"{self.kind}.{gone[0][0]}", gone[0][1]
            cure = f"Put it back, or name another: --set {path}=PATH"
            raise ConfigError(f"{path}: '{value}' does not exist. {cure}") from error
        except Exception as error:  # whatever a plugin's code brings about
            if is_memory(error):
                raise ConfigError(self._too_large()) from error
            name = f"{self.kind} {self.name} ({self.component.__module__}.{self.component.__qualname__})"
            raise PluginError(f"{name} could not be made with these settings: {told(error)}") from error

    def _too_large(self) -> str:
        """That memory does not hold it, and the setting that may well be why."""
        sizes = [(value, path) for path, value in leaves(self.config.model_dump()) if type(value) is int]
        size, path = max(sizes, default=(0, ""))
        cure = f"Lower {self.kind}.{path}, now {size}" if size > 1 else "Use a smaller backbone"
        return f"{self.kind} {self.name}: memory does not hold what these settings ask for. {cure}."


def _is_gone(value: Any) -> bool:
    """Whether a value is an absolute path at which there is nothing."""
    return isinstance(value, str | Path) and os.path.isabs(value) and not os.path.exists(value)


class MethodRef(Ref, kind="method"):
    """A method by name."""


class BackboneRef(Ref, kind="backbone"):
    """A backbone by name."""


class LossRef(Ref, kind="loss"):
    """A loss by name."""


class AugmentationRef(Ref, kind="augmentation"):
    """An augmentation by name."""


class DataRef(Ref, kind="data"):
    """A data source by name."""


class DecoderRef(Ref, kind="decoder"):
    """A decoder of files by name."""


class OptimizerRef(Ref, kind="optimizer"):
    """An optimizer by name."""


class CallbackRef(Ref, kind="callback"):
    """A callback or logger by name."""


def _truth_for_number(value: Any, found: Any) -> bool:
    """Whether true or false was read as a number, alone or in a list."""
    if isinstance(value, list | tuple) and isinstance(found, list | tuple):
        return any(map(_truth_for_number, value, found))
    return isinstance(value, bool) and isinstance(found, int | float) and not isinstance(found, bool)


def _one_level_down(schema: type[Schema], key: str, info: ValidationInfo) -> str:
    """A hint when the key is a setting of a component that this schema refers to (`loss.temperature`)."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Ref) and isinstance(field.default, str):
            registry: Lookup = (info.context or {})["registry"]
            if key in registry.get(field.annotation.kind, field.default).Config.model_fields:
                return f" Did you mean '{name}.{key}'?"
    return ""


S = TypeVar("S", bound=Schema)


def validate(schema: type[S], raw: Mapping[str, Any], *, registry: Lookup) -> S:
    """The settings as an instance of their schema; every mistake is one line of a `ConfigError`."""
    try:
        try:
            return schema.model_validate(raw, context={"registry": registry})
        except ValidationError as error:
            raise ConfigError("\n".join(readable(error))) from error
    except UnicodeEncodeError as error:  # of half a character in a text, which no message can show
        raise ConfigError("settings: a text among them is not valid Unicode.") from error


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested settings with its dotted path; empty tables have none."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def readable(error: ValidationError) -> list[str]:
    """One line a mistake: the setting's path, what is allowed, and the value that was given."""
    ways: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}  # of one setting, where it may be of several types
    for number, item in enumerate(error.errors(include_url=False)):
        *before, last = item["loc"] or ("",)
        one_of_several = isinstance(last, str) and ONE_OF_SEVERAL.fullmatch(last)
        ways.setdefault(tuple(before) if one_of_several else (*item["loc"], number), []).append(item)
    lines = []
    for place, items in ways.items():
        path = ".".join(str(part) for part in (place if len(items) > 1 else items[0]["loc"]))
        got = "" if items[0]["type"] in ("akssl", "missing") else f", got {shown(items[0]['input'])}"
        message = f"{', or '.join(map(_plain_words, items))}{got}"
        lines.append(f"{path:.300}: {message}" if path else message)
    more = [f"and {len(lines) - MOST_LINES} more."] if len(lines) > MOST_LINES + 1 else []
    return [*lines[:MOST_LINES], *more] if more else lines


def first_mistake(error: ValidationError) -> str:
    """Where the first mistake is and what is wrong, without the value, which may be of any length."""
    item = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, item['loc'])):.60} {_plain_words(item):.100}".strip()


ONE_OF_SEVERAL = re.compile(r"constrained-\w+|literal\[.*\]|int|float|str|bool")  # how pydantic names a type of a union
TABLE, LIST = "should be a table (name: value)", "should be a list"
WORDS = {
    "missing": "is missing", "dict_type": TABLE, "model_type": TABLE, "mapping_type": TABLE, "dataclass_type": TABLE,
    "tuple_type": LIST, "list_type": LIST, "path_type": "should be a path", "string_type": "should be a text",
    "too_short": "should not be empty",
}  # fmt: skip


def _plain_words(mistake: Mapping[str, Any]) -> str:
    """What pydantic found to be wrong, in words that know nothing of Python."""
    text: str = mistake["msg"]
    return WORDS.get(mistake["type"]) or text.replace("Input should", "should").replace("Value error, ", "")


# -- settings that were changed before a run is resumed ------------------------------------------
def _way_to(path: str, settings: Any) -> Iterator[tuple[FieldInfo, Any]]:
    """The fields with their values from the top to the one at this path."""
    for name in path.split("."):
        held = settings.config if isinstance(settings, Ref) else settings
        if not isinstance(held, Schema) or name not in type(held).model_fields:
            return
        settings = getattr(held, name)
        yield type(held).model_fields[name], settings


def is_harmless(path: str, settings: Schema) -> bool:
    """Whether a run goes on with another value at this path: its field, or that of a table above it, says so."""
    return any(HARMLESS in field.metadata for field, _ in _way_to(path, settings))


def is_default(path: str, settings: Schema) -> bool:
    """Whether the value at this path is the one that its field has where nobody sets it."""
    way = list(_way_to(path, settings))
    return len(way) == path.count(".") + 1 and way[-1][1] == way[-1][0].get_default(call_default_factory=True)


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """`train.epochs: 10 -> 20`."""
        return f"{self.path}: {_short(self.before)} -> {_short(self.after)}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Sequence[Change]:
    """The settings in which two tables differ, by path; what one of them lacks is null."""
    old, new = dict(leaves(before)), dict(leaves(after))
    paths = [*old, *(path for path in new if path not in old)]
    return [Change(path, old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-37:]}"  # paths differ at their ends
