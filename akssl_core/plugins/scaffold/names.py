"""The name of a new plugin in all the forms in which its distribution bears it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...config.registry import ALIASES
from ...errors import ConfigError, PluginError, did_you_mean, plain
from ..first_party import PROVIDERS

KINDS = ("method", "backbone", "augmentation", "loss", "dataset", "logger")  # of which there are templates
PREFIX = "akssl-plugin-"
LONGEST = 40
VALID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Names:
    """One name: `my-method`, `akssl-plugin-my-method`, `akssl_plugin_my_method`, `my_method` and `MyMethod`."""

    component: str
    distribution: str
    module: str
    stem: str
    title: str


def checked_kind(kind: str) -> str:
    """The kind, if there is a template of it.

    Raises:
        ConfigError: there is none; with the nearest right one.
    """
    if kind in KINDS:
        return kind
    meant = [ours for ours, registered in ALIASES.items() if registered == kind]
    hint = f" Did you mean '{meant[0]}'?" if meant else did_you_mean(kind, KINDS)
    raise ConfigError(f"kind: there is no template for '{kind}'.{hint} Kinds: {', '.join(KINDS)}.")


def named(name: str) -> Names:
    """All forms of the name of a new plugin; `My_Method`, `My Method`, `akssl-plugin-my-method` are one name.

    Raises:
        ConfigError: it cannot be the name of a distribution.
        PluginError: it belongs to one of our own packages: two claims of one name make both unusable.
    """
    component = re.sub(r"[-_\s]+", "-", name.lower()).removeprefix(PREFIX)
    if not VALID.fullmatch(component) or len(component) > LONGEST:
        left = re.sub(r"[^a-z0-9]+", "-", component).lstrip("-0123456789")[:LONGEST].rstrip("-")
        raise ConfigError(
            f"name: '{name}' cannot name a distribution; use at most {LONGEST} letters, digits and '-', and begin with "
            f"a letter.{f' Did you mean {left!r}?' if left else ''}"
        )
    taken = {plain(one): owner for table in PROVIDERS.values() for one, owner in table.items()}
    taken |= {plain(owner.removeprefix(PREFIX)): owner for owner in taken.values()}
    if owner := taken.get(plain(component)):
        raise PluginError(
            f"name: '{component}' is taken by {owner}. Choose another name, or install that one: pip install {owner}"
        )
    words, distribution = component.split("-"), PREFIX + component
    title = "".join(word.capitalize() for word in words)
    return Names(component, distribution, distribution.replace("-", "_"), "_".join(words), title)
