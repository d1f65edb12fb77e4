"""The weights that a run begins from: found, read, and what they say of the network and of its images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
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
from ..errors import AksslError, ConfigError, did_you_mean, visible
from ..exporting.backbone_file import BACKBONE_FORMAT, file_of, read_backbone_file
from ..exporting.backbone_file import START as KEPT
from ..method import Method, ParamRule
from ..nn import EMA
from ..optim import OptimizerConfig, depth_rules, matching
from ..plugins.manager import Plugins
from ..rundir.folder import RunDir, read_tensors
from ..schedule import Now
from ..settings import PICKLES, Given, RunSpec, StartSpec, merged

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
    who = f"rule: that of the weights in {os.path.basename(spec.source)}"
    return start, Given([(who, start.settings()), *given.layers], given.objects)


def _read(spec: StartSpec, plugins: Plugins) -> Start:
    """The weights of a path or a name."""
    path = user_path(spec.source)
    if path.is_dir():
        published = path / "model.safetensors"
        return _of_file(spec, published if published.is_file() and not RunDir(path).begun else file_of(path))
    if path.suffix.lower() in PICKLES:
        raise ConfigError(
            f"start: {path} may be a pickle, which can run code when it is read. Convert it once: "
            f"akssl convert {path} --out {path.with_suffix('.safetensors')}"
        )
    if path.is_absolute() or path.exists():
        return _of_file(spec, path)
    try:
        stock = plugins.get("backbone", spec.source).stock()  # type: ignore[attr-defined]
    except AksslError as error:
        raise ConfigError(
            f"start: '{visible(spec.source)}' is neither a run folder nor a .safetensors file, and as a name: {error}"
        ) from error
    if stock is None:
        raise ConfigError(f"start: there are no published weights of {spec.source}. Give a file or a run folder.")
    return Start(spec, stock.tensors, {"name": spec.source}, stock.mean, stock.std)


def _of_file(spec: StartSpec, file: Path) -> Start:
    """The weights of one file.

    Raises:
        ConfigError: there is none.
        RunDirError: it is damaged.
    """
    if not file.is_file():
        if file.parent.is_dir() and RunDir(file.parent).begun:
            read_backbone_file(file)  # it says how to go on with a run that has not ended
        near = did_you_mean(file.name, [other.name for other in file.parent.glob("*")])
        raise ConfigError(f"start: there is no '{file}'.{near} Give a run folder or a .safetensors file.")
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != BACKBONE_FORMAT:
        return Start(spec, tensors, None, *_normalisation_beside(file))
    tensors, _, header = read_backbone_file(file)
    table = {**header.backbone, **({"pretrained": False} if header.backbone.get("pretrained") else {})}
    return Start(spec, tensors, table, header.preprocess.mean, header.preprocess.std)


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


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number a channel: as they are, or their mean for other channels than the weights know."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


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
