"""Settings as YAML that comes from anywhere: plain values, of a size that nobody has to fear."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

MOST_BYTES = 2**17  # of a file; resolved settings are some thousand bytes
MOST_VALUES = 5000  # with every alias written out: nine lines of aliases to aliases stand for a billion values
DEEPEST = 40
_NUMBERS = {  # as Python and JSON have them: 1e-3 and 0o17 are some, 010 and 1:30, which YAML 1.1 has, are texts
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][\d_]*|0b[01_]+|0o[0-7]+|0x[\da-fA-F_]+)$",
    "tag:yaml.org,2002:float": r"[-+]?(\.\d[\d_]*|\d[\d_]*\.[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but for its numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012 # PyYAML's own, which copies it before it adds
        first: [(tag, form) for tag, form in pairs if tag not in _NUMBERS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A table as it is written, before others are merged into it; no name stands twice."""
        node, names = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.composer.ComposerError(None, None, f"'{key.value}' is there twice", key.start_mark)
            names.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes a text that a loader would take for a number, and writes out what stands in two places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _side in (_Loader, _Dumper):
    for _tag, _form in _NUMBERS.items():
        _side.add_implicit_resolver(_tag, re.compile(_form), [*"-+.0123456789"])


def dump_yaml(data: Any) -> str:
    """The text that `parse_yaml` reads back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a table of settings.

    Raises:
        ConfigError: it cannot be read, is not YAML, is too large, or holds something else.
    """
    try:
        with path.open("rb") as file:  # no more than is allowed, from a file without an end too
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a path with a zero in it is a ValueError
        raise ConfigError(f"config: cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"config: {path} is larger than {MOST_BYTES} bytes; expected a file of settings.")
    try:
        data = parse_yaml(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"config: cannot read {path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"config: {path}{error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"config: {path} must hold settings (key: value), got {type(data).__name__}.")
    return data


def parse_yaml(text: str) -> Any:
    """The value that a text stands for: tables with texts as keys, lists, texts, numbers, true, false and null.

    Raises:
        ValueError: where and why it is none; the words follow the name of what was read.
    """
    try:
        _refuse_too_much(yaml.parse(text, _Loader))
        data = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
        raise ValueError(f"{where}: not valid YAML: {problem}.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of values that only look like a date, say
        reason = str(error) if type(error) is ValueError else f"a value of a wrong form ({error})"
        raise ValueError(f": not valid YAML: {' '.join(reason.split()):.200}.") from error
    _refuse_odd(data)
    return data


def _refuse_too_much(events: Iterable[Any]) -> None:
    """Count values before any is made, an alias as all that it stands for."""
    counts: dict[str | None, int] = {}
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
        if isinstance(event, yaml.AliasEvent):
            total += counts.get(event.anchor, MOST_VALUES)  # one within itself has no end
        elif isinstance(event, yaml.NodeEvent):
            total += 1
        if isinstance(event, yaml.ScalarEvent) and event.anchor:
            counts[event.anchor] = 1
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            counts |= {anchor: total - before} if anchor else {}
        if total > MOST_VALUES or len(open_) > DEEPEST:
            raise ValueError(f"more than {MOST_VALUES} values (aliases written out), or nested deeper than {DEEPEST}")


def _refuse_odd(data: Any) -> None:
    """Keys that are no texts, and numbers that no setting takes and no message can show."""
    if isinstance(data, int) and data.bit_length() > 64:
        raise ValueError(": a whole number of more than 64 bits.")
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise ValueError(f": the name of a setting must be a text, got {key!r:.40}; put it in quotes.")
            _refuse_odd(value)
    elif isinstance(data, list | tuple | set):
        for value in data:
            _refuse_odd(value)
