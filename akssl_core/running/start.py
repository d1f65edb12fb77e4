"""The weights that a run begins from, and what they say of the network and of its images."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ..backbone import Backbone
from ..config.registry import STAND_IN
from ..config.schema import Schema, validate
from ..errors import ConfigError, visible
from ..exporting.backbone_file import START as KEPT
from ..exporting.weights import Weights, network_of, read_weights
from ..plugins.manager import Plugins
from ..settings import Given, StartSpec, merged

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
