"""From what a user gave to a complete configuration, with the origin of every value.

Layers, later ones win: core defaults < the method's recipe < config file < keywords or flags. What nobody
decided is then filled by rules that look at the data and the hardware, each with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from ..backbone import Backbone, TokenBackbone
from ..config.registry import STAND_IN, Registry
from ..config.schema import Component, Schema, leaves, user_path, validate
from ..config.yaml import read_yaml
from ..data import DEFAULT_SOURCE
from ..data.opening import data_table
from ..errors import ConfigError, PluginError, did_you_mean
from ..hookspecs import hookimpl
from ..method import Method
from ..plugins.manager import Plugins
from ..settings import CORE, OBJECTS, OF_RUN, Given, Layers, RunSpec, sections

CORE_DEFAULTS: Mapping[str, Any] = {
    "augmentation": {"name": "pair"},
    "optimizer": {"name": "sgd"},
    "data": {"name": DEFAULT_SOURCE},
    "seed": 0,
}
FOR_TOKENS: Mapping[str, Any] = {"optimizer": {"name": "adamw", "lr": {"start": 5e-4, "warmup": 1}, "lr_per": 256}}
"""What trains a transformer where the recipe's optimizer was chosen for convolutions."""


def collect(
    method: str | Mapping[str, Any] | None,
    config: Path | str | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    plugins: Plugins,
    *,
    who: str = "user",
) -> Given:
    """Config file and keywords as layers; objects that have no name are set aside."""
    given, objects = set_aside({**settings, "method": settings.get("method") if method is None else method})
    given |= stand_ins(objects, plugins)
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if config is not None:
        table = config if isinstance(config, Mapping) else read_yaml(user_path(config))
        origin = "config" if isinstance(config, Mapping) else f"config file {Path(config).name}"
        if own := [name for name in OF_RUN if name in table]:
            raise ConfigError(
                f"config: {own[0]} is no setting of a run but of the call: --{own[0]}, in Python {own[0]}=."
            )
        layers.append((origin, asked(table, plugins)))
    layers.append((who, asked(given, plugins)))
    return Given(layers, objects)


def set_aside(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords that were given, and those among them that are Python objects without a name."""
    given = {key: value for key, value in settings.items() if value is not None}
    names = [key for key in OBJECTS if key in given and not isinstance(given[key], str | Mapping | Path)]
    return given, {key: given.pop(key) for key in names}


def stand_ins(objects: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """What settings say of Python objects: the name and settings of a registered backbone, else the class."""
    return {key: _table_of(key, value, plugins) for key, value in objects.items()}


def _table_of(kind: str, part: Any, plugins: Plugins) -> dict[str, Any]:
    if isinstance(part, Backbone) and plugins.provides(kind, part.name) and plugins.get(kind, part.name) is type(part):
        return {"name": part.name, **part.config.model_dump(mode="json")}
    return {"name": STAND_IN, "type": type(part).__name__}


def asked(settings: Mapping[str, Any], plugins: Plugins) -> dict[str, Any]:
    """Keywords as sections, with the source that `data` means."""
    table = sections(settings)
    return {**table, "data": data_table(table["data"], plugins)} if "data" in table else table


class StandIn(Component):
    """A part of a run that was passed as a Python object: named in the settings, never built from them."""

    name = STAND_IN

    class Config(Schema):
        """The class of the object, as far as it is known."""

        type: str = Field("object", description="class of the object that was passed")

    def __init__(self, config: Any, *args: Any) -> None:
        raise ConfigError(
            f"{self.kind}: this run was started from Python with an object ({config.type}) that has no name. "
            f"Pass it again: akssl_core.run(..., {self.kind}=...) or akssl_core.resume(run_dir, {self.kind}=...)."
        )


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Register a stand-in for each kind of object, which cannot be rebuilt by a name."""
    for kind in OBJECTS:
        registry.add(type(f"{StandIn.__name__}-{kind}", (StandIn,), {"kind": kind}))


def layer(given: Given, plugins: Plugins) -> Layers:
    """All layers merged: core defaults, recipe, config file, keywords.

    Raises:
        ConfigError: no method was named, or the recipe is unknown.
    """
    user = Layers()
    for who, settings in given.layers:
        user.put(settings, who)
    name = user.get("method", "name")
    if not isinstance(name, str):
        installed = ", ".join(plugins.names("method")) or "none"
        raise ConfigError(f"method: none was named. Installed: {installed}.")
    method = plugins.get("method", name)
    assert issubclass(method, Method)
    recipe, reason = _recipe(method, user, plugins)
    backbone = _backbone(given, user, plugins)
    if backbone and (suited := _suited(method, recipe, backbone, plugins)) != recipe:
        recipe, reason = suited, f"rule: '{recipe}' of {method.name} for {backbone.name}"
    layers = Layers()
    layers.put(CORE_DEFAULTS, CORE)
    layers.put(method.recipes.get(recipe, {}), f"recipe '{recipe}' of {method.name}")
    unsuited = backbone and _takes_tokens(backbone) and not _for_tokens(method, recipe, plugins)
    if backbone and unsuited and user.get("optimizer", "name") is None:
        layers.put(FOR_TOKENS, f"rule: recipe '{recipe}' is for convolutions, {backbone.name} is a transformer")
    for who, settings in given.layers:
        layers.put(settings, who)
    layers.put({"recipe": recipe}, reason)
    layers.values["method"]["name"] = method.name
    return layers


def _recipe(method: type[Method], user: Layers, plugins: Plugins) -> tuple[str, str]:
    """Which recipe of the method applies, and why."""
    name = user.get("recipe")
    if name is not None:
        if name not in method.recipes:
            known, hint = ", ".join(method.recipes) or "none", did_you_mean(str(name), method.recipes)
            raise ConfigError(f"recipe: {method.name} has no recipe '{name}'.{hint} Known: {known}.")
        return name, user.origin["recipe"]
    source = user.get("data", "name")
    family = getattr(plugins.get("data", source), "family", None) if isinstance(source, str) else None
    if isinstance(family, str) and family in method.recipes:
        return family, f"rule: {source} is {family} data"
    return "default", CORE


def _backbone(given: Given, user: Layers, plugins: Plugins) -> type[Backbone] | None:
    """The kind of backbone that the user names or hands over; None: another decides."""
    module, name = given.objects.get("backbone"), user.get("backbone", "name")
    if isinstance(module, Backbone):
        return type(module)
    if not isinstance(name, str) or name == STAND_IN:
        return None
    try:
        return plugins.get("backbone", name)  # type: ignore[return-value]
    except PluginError:  # told with the setting's path when all settings are checked
        return None


def _takes_tokens(backbone: type[Backbone]) -> bool:
    return issubclass(backbone, TokenBackbone)


def _for_tokens(method: type[Method], recipe: str, plugins: Plugins) -> bool:
    """Whether a recipe was made for transformers: by the backbone that it names, or that the method takes."""
    name = method.recipes.get(recipe, {}).get("backbone", {}).get("name")
    return _takes_tokens(method.accepts if name is None else plugins.get("backbone", name))  # type: ignore[arg-type]


def _suited(method: type[Method], recipe: str, backbone: type[Backbone], plugins: Plugins) -> str:
    """The recipe itself, or the one beside it (`imagenet_vit` beside `imagenet`) that is for such a backbone."""
    tokens = _takes_tokens(backbone)
    beside = (name for name in method.recipes if name == recipe or name.startswith(recipe + "_"))
    return next((name for name in beside if _for_tokens(method, name, plugins) == tokens), recipe)


def check(layers: Layers, plugins: Plugins) -> RunSpec:
    """The merged settings, validated against the schema of every component."""
    return validate(RunSpec, layers.values, registry=plugins)


def provenance(spec: RunSpec, layers: Layers) -> dict[str, str]:
    """Who decided each value of the resolved run; what nobody touched is its schema's default."""
    table = dict(leaves(spec.table()))
    origin = {_named(path, layers, table): who for path, who in layers.origin.items()}
    return {path: _origin(path, origin) for path in table}


def _named(path: str, layers: Layers, table: Mapping[str, Any]) -> str:
    """`method.loss.name` for `method.loss`, where the name of a component stands for its table; else the path."""
    given, name = layers.get(*path.split(".")), f"{path}.name"
    return name if isinstance(given, str) and table.get(name) == given else path


def _origin(path: str, origin: Mapping[str, str]) -> str:
    """The origin of a leaf: its own, that of a table above it, or (a number for a schedule) of its start."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if found := origin.get(".".join(parts[:end])):
            return found
    return origin.get(path + ".start", "default")
