"""The weights that a run begins from, and what they say of the network and of its images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from glob import escape
from typing import Any

from ..backbone import Backbone
from ..backbone.weights import Account
from ..config.registry import STAND_IN
from ..config.schema import Schema, validate
from ..errors import ConfigError, visible
from ..exporting.backbone_file import START as KEPT
from ..exporting.weights import Weights, network_of, read_weights
from ..method import Method, ParamRule
from ..nn import EMA
from ..optim import OptimizerConfig, depth_rules, matching
from ..plugins.manager import Plugins
from ..schedule import Now
from ..settings import Given, RunSpec, StartSpec, merged

UNKNOWN = (
    "start: how the images of these weights were normalised is unknown; those of the run are, by its data. "
    "Set start.mean and start.std, as they are published with the weights."
)


def kept(backbone: Backbone) -> str:
    """The note that a run folder keeps the weights of the start, and how large the file is."""
    size = sum(tensor.nbytes for tensor in backbone.export_state().values())
    return f"start: its weights are kept in the run folder as {KEPT}, {size / 1e6:.3g} MB, for akssl eval"


class _Only(Schema):
    """The settings of the start alone, which are needed before all others."""

    start: StartSpec | None = None


def begin(given: Given, plugins: Plugins) -> tuple[Weights | None, Given]:
    """The weights that were asked for, and the request with what they say of network and images, as its lowest layer.

    Raises:
        AksslError: there are no such weights, or it cannot be told of which network they are.
    """
    asked = merged(
        *({name: layer[name] for name in ("start", "backbone") if name in layer} for _, layer in given.layers)
    )
    spec = validate(_Only, {"start": asked.get("start")}, registry=plugins).start
    if spec is None:
        return None, given
    start = read_weights(spec, plugins, "start")
    named = "backbone" in given.objects or (asked.get("backbone") or {}).get("name") is not None
    if named:
        start = replace(start, backbone=None)
    elif start.backbone is None:
        start = replace(start, backbone={"name": network_of(start, plugins)})
    elif start.backbone.get("name") == STAND_IN:
        raise ConfigError(f"start: {spec.source} is of a network of your own; pass it too: backbone=... in Python.")
    who = f"rule: that of the weights in {visible(os.path.basename(spec.source))}"
    return start, Given([(who, _settings(start)), *given.layers], given.objects)


def _settings(start: Weights) -> dict[str, Any]:
    """What a run takes over where its user says nothing."""
    known = {} if start.mean is None or start.std is None else {"mean": list(start.mean), "std": list(start.std)}
    return {"start": known, **({"backbone": dict(start.backbone)} if start.backbone is not None else {})}


def normalisation(
    spec: StartSpec, begun: Weights | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation, a number a channel; None: neither is known.

    Those that the weights know of themselves become their mean where the images have other channels.

    Raises:
        ConfigError: the user has given one alone, or not a number a channel.
    """
    of_weights = (begun.mean, begun.std) if begun else (spec.mean, spec.std)  # a run that goes on was asked before
    found = []
    for name, values, own in zip(("mean", "std"), (spec.mean, spec.std), of_weights, strict=True):
        if values is None:
            continue
        if len(values) != channels and values != own:
            raise ConfigError(
                f"start.{name}: the images have {channels} {'channel' if channels == 1 else 'channels'}, and "
                f"{len(values)} numbers were given. Expected a number for each channel."
            )
        found.append(values if len(values) == channels else (sum(values) / len(values),) * channels)
    if len(found) == 1:
        raise ConfigError("start: expected both start.mean and start.std, or neither; one of them is not known.")
    return (found[0], found[1]) if found else None


# -- care in the first steps ----------------------------------------------------------------------
def freeze(backbone: Backbone, spec: StartSpec | None) -> None:
    """Let the parameters that are to stay for good need no gradient: they are in no group of the optimizer.

    Raises:
        ConfigError: a pattern matches none, or together they match all.
    """
    names = matching(backbone, spec.freeze, "start.freeze: '{}'") if spec else set()
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in names)
    if names and not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ConfigError("start.freeze: nothing of the backbone would be trained. Freeze less of it.")


def with_care(spec: RunSpec, origin: dict[str, str], method: Method, account: Account | None) -> RunSpec:
    """The settings with what only the weights and the built method decide, and in `origin` why."""
    if spec.start is None:
        return spec
    found: dict[str, Any] = {}
    first = method.backbone.keys.first
    if spec.start.warm_with is None and "channels" in (account.adapted.get(first, "") if account else ""):
        found["warm_with"] = (f"{first.rpartition('.')[0]}.*",)
        origin["start.warm_with"] = "rule: the first convolution, for its channels were adapted"
    if spec.start.warm_heads and not any(
        parameter.requires_grad and not name.startswith("backbone.") for name, parameter in method.named_parameters()
    ):
        found["warm_heads"] = 0.0
        origin["start.warm_heads"] = f"rule: {method.name} trains nothing beside its backbone"
    return spec.model_copy(update={"start": spec.start.model_copy(update=found)})


def first_rules(method: Method, spec: StartSpec | None) -> list[ParamRule]:
    """While new heads learn alone the backbone is frozen; then its rate rises from 0, over as long again."""
    if spec is None or not spec.warm_heads:
        return []
    also = matching(method.backbone, spec.warm_with or (), "start.warm_with: '{}'")
    return [
        ParamRule(f"backbone.{escape(name)}", frozen_epochs=spec.warm_heads, rise_epochs=spec.warm_heads)
        for name, _ in method.backbone.named_parameters()
        if name not in also
    ]


def care_notes(spec: RunSpec, method: Method, now: Now) -> Iterator[str]:
    """What is done to a backbone that begins from weights, in words."""
    begun, rates = spec.start, spec.optimizer.config
    assert isinstance(rates, OptimizerConfig)
    factors = [rule.lr for rule in depth_rules(method.backbone, rates)]
    if factors:
        yield f"optimizer: the layers of {method.backbone.name} learn at {min(factors):.3g} to 1 of the rate, by depth"
    if begun is None:
        return
    if begun.warm_heads:
        steps = min(math.ceil(begun.warm_heads * now.steps_per_epoch), now.total_steps)
        beside = f", but for {', '.join(begun.warm_with)}" if begun.warm_with else ""
        copies = "slow copies are made exact ones, and " if any(isinstance(m, EMA) for m in method.modules()) else ""
        yield (
            f"start: in the first {steps} steps heads learn alone and the backbone stays{beside}; "
            f"then {copies}its rate rises from 0 over as many steps"
        )
    if begun.freeze:
        names = matching(method.backbone, begun.freeze, "start.freeze: '{}'")
        yield f"start: {len(names)} of {len(method.backbone.depths())} parameters of the backbone stay for good"
    if begun.statistics == "measure":
        yield "start: running statistics of batch norms are measured on the images, at the start and at the end"
