"""What a new plugin may be called, and every name that follows from it."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import akssl_core

from ...errors import ConfigError, PluginError, did_you_mean, plain
from ..first_party import PROVIDERS

KINDS: Mapping[str, str] = {
    "method": "method",
    "backbone": "backbone",
    "augmentation": "augmentation",
    "loss": "loss",
    "dataset": "data",
    "logger": "callback",
}  # what a user calls it -> the registry's kind
PREFIX = "akssl-plugin-"
LONGEST = 40
VALID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Names:
    """One name in all the forms in which a distribution bears it."""

    component: str  # "my-method": what users type

    @property
    def distribution(self) -> str:
        """`akssl-plugin-my-method`: what is installed."""
        return PREFIX + self.component

    @property
    def module(self) -> str:
        """`akssl_plugin_my_method`: what is imported."""
        return self.distribution.replace("-", "_")

    @property
    def stem(self) -> str:
        """`my_method`, as in `test_my_method.py`."""
        return self.component.replace("-", "_")

    @property
    def title(self) -> str:
        """`MyMethod`: the class."""
        return "".join(part.capitalize() for part in self.component.split("-"))


def checked_kind(kind: str) -> str:
    """The kind, if there is a template of it.

    Raises:
        ConfigError: there is none; with the nearest right one.
    """
    if kind in KINDS:
        return kind
    meant = [ours for ours, registered in KINDS.items() if registered == kind]
    hint = f" Did you mean '{meant[0]}'?" if meant else did_you_mean(kind, KINDS)
    raise ConfigError(f"kind: there is no template for '{kind}'.{hint} Kinds: {', '.join(KINDS)}.")


def named(name: str) -> Names:
    """All forms of the name of a new plugin; `My_Method`, `My Method` and `my-method` are one name.

    Raises:
        ConfigError: it cannot be the name of a distribution, or means something else in Python or in the core.
        PluginError: it belongs to one of our own packages.
    """
    component = re.sub(r"[-_\s]+", "-", name.lower())
    _refuse_prefix(component)
    if not VALID.fullmatch(component):
        raise ConfigError(
            f"name: '{name}' cannot name a distribution; use letters, digits and '-', and begin with a letter."
            + _nearest_valid(component)
        )
    if len(component) > LONGEST:
        raise ConfigError(f"name: '{component}' has {len(component)} characters; at most {LONGEST} are allowed.")
    _refuse_reserved(component)
    _refuse_taken(component)
    return Names(component)


def _refuse_prefix(component: str) -> None:
    """Everybody's distributions begin alike, so that part is not typed."""
    if component == PREFIX.strip("-") or component.startswith(PREFIX):
        rest = component.removeprefix(PREFIX)
        shown = f"'{rest}'" if VALID.fullmatch(rest) else "what follows it"
        raise ConfigError(f"name: '{PREFIX}' is put before the name for you; give {shown} alone.")


def _nearest_valid(component: str) -> str:
    """A hint at the name that is left when all that is not allowed is taken out."""
    left = re.sub(r"[^a-z0-9]+", "-", component).lstrip("-0123456789").rstrip("-")
    return f" Did you mean '{left}'?" if VALID.fullmatch(left) else ""


def _refuse_reserved(component: str) -> None:
    """Names that mean something else already, in Python or in the core."""
    word = plain(component)
    meanings = {
        "a keyword of Python": keyword.kwlist,
        "a module of Python's standard library": [
            module for module in sys.stdlib_module_names if not module.startswith("_")
        ],
        "a name of akssl_core": [*akssl_core.__all__, "akssl", "akssl-core", "core"],
    }
    for meaning, words in meanings.items():
        if word in {plain(other) for other in words}:
            raise ConfigError(f"name: '{component}' is {meaning}; add a word, as in 'my-{component}'.")


def _refuse_taken(component: str) -> None:
    """Names of our own packages and of what they provide: two claims of one name make both unusable."""
    taken = {plain(name): owner for table in PROVIDERS.values() for name, owner in table.items()}
    taken |= {plain(owner.removeprefix(PREFIX)): owner for owner in taken.values()}
    if owner := taken.get(plain(component)):
        raise PluginError(
            f"name: '{component}' is taken by {owner}. Choose another name, or install that one: pip install {owner}"
        )
