"""The weights that a run begins from: found, read, and what they say of the network and of its images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveFloat, ValidationError
from torch import Tensor

from ..backbone import Backbone
from ..backbone.weights import Account, fit, load_weights
from ..config.registry import STAND_IN
from ..config.schema import Schema, user_path, validate
from ..data import ImageSpec
from ..errors import LONGEST, AksslError, ConfigError, did_you_mean, visible
from ..exporting.backbone_file import BACKBONE_FORMAT, file_of, read_backbone_file
from ..exporting.backbone_file import START as KEPT
from ..plugins.manager import Plugins
from ..rundir.folder import RunDir, read_tensors
from ..settings import PICKLES, Given, StartSpec, merged

BESIDE = ("preprocessor_config.json", "config.json")  # where hubs say how the images of weights were normalised
UNKNOWN = (
    "start: how the images of these weights were normalised is unknown; those of the run are, by its data. "
    "Set start.mean and start.std, as they are published with the weights."
)
USUAL = 224  # px; the side at which networks are compared with a file


@dataclass(frozen=True)
class Start:
    """The weights that a run begins from."""

    spec: StartSpec
    tensors: Mapping[str, Tensor] = field(repr=False)
    backbone: Mapping[str, Any] | None = None
    """Settings of their network; None: the file does not say."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    method: str = ""
    """That trained them, where the file says so."""

    def settings(self) -> dict[str, Any]:
        """What a run takes over where its user says nothing."""
        known = {} if self.mean is None or self.std is None else {"mean": list(self.mean), "std": list(self.std)}
        return {"start": known, **({"backbone": dict(self.backbone)} if self.backbone is not None else {})}

    def fill(self, backbone: Backbone) -> Account:
        """Give a backbone these weights.

        Raises:
            ConfigError: they are not all accounted for.
        """
        return load_weights(self.tensors, backbone, prefix=self.spec.prefix)


def kept(backbone: Backbone) -> str:
    """The note that a run folder keeps the weights of the start, and how large the file is."""
    size = sum(tensor.nbytes for tensor in backbone.export_state().values())
    return f"start: its weights are kept in the run folder as {KEPT}, {size / 1e6:.3g} MB, for akssl eval"


class _Only(Schema):
    """The settings of the start alone, which are needed before all others."""

    start: StartSpec | None = None


def begin(given: Given, plugins: Plugins) -> tuple[Start | None, Given]:
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
    start = _read(spec, plugins)
    named = "backbone" in given.objects or (asked.get("backbone") or {}).get("name") is not None
    if named:
        start = replace(start, backbone=None)
    elif start.backbone is None:
        start = replace(start, backbone={"name": _network_of(start, plugins)})
    elif start.backbone.get("name") == STAND_IN:
        raise ConfigError(f"start: {spec.source} is of a network of your own; pass it too: backbone=... in Python.")
    who = f"rule: that of the weights in {visible(os.path.basename(spec.source))}"
    return start, Given([(who, start.settings()), *given.layers], given.objects)


def _read(spec: StartSpec, plugins: Plugins) -> Start:
    """The weights of a path or a name."""
    path, name = user_path(spec.source), visible(spec.source)[:LONGEST]
    if os.path.isdir(path):
        published = path / "model.safetensors"
        return _of_file(spec, published if published.is_file() and not RunDir(path).begun else file_of(path))
    if path.suffix.lower() in PICKLES:
        raise ConfigError(
            f"start: {name} may be a pickle, which can run code when it is read. Convert it once: "
            f"akssl convert {name} --out {name.removesuffix(path.suffix)}.safetensors"
        )
    if path.is_absolute() or os.path.exists(path):
        return _of_file(spec, path)
    try:
        stock = plugins.get("backbone", spec.source).stock()  # type: ignore[attr-defined]
    except AksslError as error:
        raise ConfigError(
            f"start: '{name}' is neither a run folder nor a .safetensors file, and as a name: {visible(str(error))}"
        ) from error
    if stock is None:
        raise ConfigError(f"start: there are no published weights of {name}. Give a file or a run folder.")
    return Start(spec, stock.tensors, {"name": spec.source}, stock.mean, stock.std)


def _of_file(spec: StartSpec, file: Path) -> Start:
    """The weights of one file.

    Raises:
        ConfigError: there is none.
        RunDirError: it is damaged.
    """
    if not os.path.isfile(file):
        name = visible(str(file))[:LONGEST]
        if os.path.exists(file):
            raise ConfigError(f"start: '{name}' holds no weights. Give a run folder or a .safetensors file.")
        if RunDir(file.parent).begun:
            read_backbone_file(file)  # it says how to go on with a run that has not ended
        beside = [other.name for other in file.parent.glob("*")] if os.path.isdir(file.parent) else []
        near = visible(did_you_mean(file.name, beside))
        raise ConfigError(f"start: there is no '{name}'.{near} Give a run folder or a .safetensors file.")
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != BACKBONE_FORMAT:
        return Start(spec, tensors, None, *_normalisation_beside(file))
    tensors, _, header = read_backbone_file(file)
    table = {**header.backbone, **({"pretrained": False} if header.backbone.get("pretrained") else {})}
    return Start(spec, tensors, table, header.preprocess.mean, header.preprocess.std, metadata.get("method", ""))


class _Told(Schema):
    """How images were normalised."""

    mean: tuple[float, ...] = Field(min_length=1, max_length=256)
    std: tuple[PositiveFloat, ...] = Field(min_length=1, max_length=256)


def _normalisation_beside(file: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation in the files that hubs store beside weights, where there are any."""
    for name in BESIDE:
        try:
            table = json.loads((file.parent / name).read_bytes())
            table = {**table, **table.get("pretrained_cfg", {})}
            told = _Told(mean=table.get("image_mean", table.get("mean")), std=table.get("image_std", table.get("std")))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue
        if len(told.mean) == len(told.std):
            return told.mean, told.std
    return None, None


def _network_of(start: Start, plugins: Plugins) -> str:
    """The one installed backbone that accounts for all tensors.

    Raises:
        ConfigError: none does, or several.
    """
    fitting = list(_fitting(start, plugins))
    if len(fitting) == 1:
        return fitting[0]
    found = f"those of {' and '.join(fitting)}" if fitting else "of no backbone that is tried"
    first = f"its first tensor is '{visible(next(iter(start.tensors), ''))}'"
    raise ConfigError(
        f"start: {start.spec.source} does not say of which network it is, and its shapes are {found} ({first}). "
        f"Name it with --backbone: {', '.join(fitting or plugins.names('backbone'))}, or one of an installed library."
    )


def _fitting(start: Start, plugins: Plugins) -> Iterator[str]:
    """The backbones that account for all tensors, tried on outlines without memory."""
    for name in plugins.names("backbone"):
        component: Any = plugins.get("backbone", name)
        try:
            with torch.device("meta"):
                outline = component(component.Config(), ImageSpec(USUAL, 3, (0.5,) * 3, (0.5,) * 3))
            fit(start.tensors, outline.export_state(), outline.keys, prefix=start.spec.prefix)
        except (AksslError, NotImplementedError, RuntimeError, ValidationError):
            continue
        yield component.name


def normalisation(
    spec: StartSpec, begun: Start | None, channels: int
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
