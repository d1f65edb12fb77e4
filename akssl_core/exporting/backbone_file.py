"""A trained backbone as the file `backbone.safetensors`: writing it, and loading a backbone from one.

The tensors are a plain state dict under the key names of the library the backbone comes from; the header says
how to build the network and how to feed it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import Json, ValidationError, model_validator
from torch import Tensor, nn

from ..backbone import Backbone, WrappedBackbone
from ..config.registry import STAND_IN
from ..config.schema import BackboneRef, Schema, first_mistake, user_path, validate
from ..data import ImageSpec, Preprocess
from ..errors import ConfigError, RunDirError
from ..nn import state_digest
from ..plugins.manager import Plugins, installed
from ..rundir.files import read_tensors, read_texts
from ..rundir.folder import RunDir

BACKBONE_FORMAT, CLASSIFIER_FORMAT = "akssl-backbone-1", "akssl-classifier-1"
OURS = {BACKBONE_FORMAT: "a backbone, as akssl run leaves it", CLASSIFIER_FORMAT: "a classifier of akssl finetune"}
OWN = "akssl"  # the text of a header that names our format where "format" is another library's
FILE = "backbone.safetensors"
PUBLISHED = "model.safetensors"  # in a folder that hubs know
START = "start.safetensors"  # the same file of the weights that a run began from


def header(
    method: str,
    backbone: Mapping[str, Any],
    encoder: Backbone,
    preprocess: Preprocess,
    learned_from: Sequence[Mapping[str, str]] = (),
) -> dict[str, str]:
    """The header's texts, by which anybody can use the weights: the network's settings and how it is fed, as JSON.

    `learned_from` says of each network that taught this one, and of the weights it began from, where they come from,
    under which licence, and their SHA-256.
    """
    image = encoder.image
    return {
        "format": BACKBONE_FORMAT,
        "method": method,
        "backbone": json.dumps(dict(backbone)),
        "feature_size": str(encoder.embed_dim),
        "image": json.dumps({"size": image.size, "channels": image.channels, "mean": image.mean, "std": image.std}),
        "preprocess": json.dumps(preprocess.to_dict()),
        "torch": str(torch.__version__),
        "notes": json.dumps(encoder.notes),
        "learned_from": json.dumps([dict(one) for one in learned_from]),
    }


def licences_of(metadata: Mapping[str, str]) -> str | None:
    """The licences of the networks that a backbone has learned from, as its file says; None: it says nothing."""
    known = {one["licence"] for one in learned_from_of(metadata) if "licence" in one}
    return " AND ".join(sorted(known)) or None


def learned_from_of(metadata: Mapping[str, str]) -> list[dict[str, str]]:
    """What the header of a file says of the networks that its backbone has learned from; []: nothing."""
    try:
        return [
            {str(name): str(value) for name, value in one.items()}
            for one in json.loads(metadata.get("learned_from", "[]"))
        ]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []


def export_backbone(
    run_dir: RunDir,
    method: str,
    backbone: Mapping[str, Any],
    encoder: Backbone,
    preprocess: Preprocess,
    name: str = FILE,
    learned_from: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write `backbone.safetensors`, or a file of another name, into a run folder."""
    state = encoder.export_state()
    texts = {**header(method, backbone, encoder, preprocess, learned_from), "sha256": state_digest(state)}
    return run_dir.write_tensors(name, state, texts)


def file_of(path: Path | str) -> Path:
    """Find the backbone file: a path to a run folder, to a published one or to the file itself is given."""
    given = user_path(path)
    if not os.path.isdir(given):
        return given
    is_published = os.path.isfile(given / PUBLISHED) and not RunDir(given).begun
    return given / (PUBLISHED if is_published else FILE)


def format_of(metadata: Mapping[str, str]) -> str:
    """The format that a header names: of a published file under a name of our own, for others read "format"."""
    return metadata.get(OWN, metadata.get("format", ""))


def kind_of(file: Path) -> str:
    """The format of a file of ours, of a backbone where that cannot be told."""
    with suppress(RunDirError):
        if file.is_file() and (found := format_of(read_texts(file))) in OURS:
            return found
    return BACKBONE_FORMAT


def read_backbone_file(file: Path, wanted: str = BACKBONE_FORMAT) -> tuple[dict[str, Tensor], dict[str, str], _Header]:
    """The weights and the header, as it is and as it was parsed, since a file may come from anywhere.

    Raises:
        RunDirError: there is no such file, it is not one of ours of the format `wanted`, or it is damaged.
    """
    if not file.is_file():
        run = RunDir(file.parent)
        state = "is finished, and its file was lost" if run.begun and run.manifest.final else "has not finished yet"
        hint = f" The run {state}. Go on with it: akssl resume {file.parent}." if run.begun else ""
        raise RunDirError(f"{file} does not exist.{hint}")
    tensors, metadata = read_tensors(file)
    if (found := format_of(metadata)) != wanted:
        if found in OURS:
            raise RunDirError(f"{file} is {OURS[found]}; expected {OURS[wanted]}.")
        raise RunDirError(f"{file} was not written by akssl: its header lacks format = {wanted}.")
    if metadata.get("sha256", "") not in ("", state_digest(tensors)):
        cure = (
            f"Delete it: akssl resume {file.parent} writes it again." if RunDir(file.parent).begun else "Get it again."
        )
        raise RunDirError(f"{file} is damaged: its weights are not those that were written. {cure}")
    try:
        parsed = _Header.model_validate({name: metadata.get(name, "") for name in _Header.model_fields})
    except ValidationError as error:
        raise RunDirError(f"{file} is damaged: its header is wrong: {first_mistake(error)}.") from error
    return tensors, metadata, parsed


def load_backbone(path: Path | str, *, module: nn.Module | None = None, plugins: Plugins | None = None) -> Backbone:
    """A trained backbone in eval mode, from a run folder or a `.safetensors` file.

    It maps normalised float images (N, C, H, W) to features (N, D); its `preprocess` turns PIL images, uint8
    tensors or arrays into such images. `module` is the network to fill when the run trained one of your own.

    Raises:
        RunDirError: there is no such file, or it is not one of ours.
        ConfigError: the run trained your own module and none was given, or its weights do not fit.
    """
    file = file_of(path)
    tensors, _, known = read_backbone_file(file)
    return filled(file, tensors, known, module, plugins or installed())


def filled(
    file: Path, tensors: Mapping[str, Tensor], known: _Header, module: nn.Module | None, plugins: Plugins
) -> Backbone:
    """The network of a header with the weights of its file, in eval mode; raises the errors of `load_backbone`."""
    if (run := RunDir(file.parent)).begun:
        with suppress(RunDirError):  # a backbone needs no manifest
            plugins.remember(run.manifest.plugins)
    with torch.random.fork_rng(devices=[]):
        if module is None:
            _refuse_misfit(file, tensors, known.backbone, known.image, plugins)
        backbone = _empty(known.backbone, known.image, module, plugins)
    target: nn.Module = backbone.module if isinstance(backbone, WrappedBackbone) else backbone
    try:
        target.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{file}: the weights do not fit the module that was given: {error}") from error
    backbone.preprocess = known.preprocess
    return backbone.eval()


class _Named(Schema):
    """The network alone, for its checked settings."""

    backbone: BackboneRef


class _Header(Schema):
    """The part of a backbone file's header that loading takes: the network's settings, and how it is fed."""

    image: Json[ImageSpec]
    preprocess: Json[Preprocess]
    backbone: Json[dict[str, Any]]

    @model_validator(mode="after")
    def _consistent(self) -> _Header:
        for image in (self.image, self.preprocess):
            if not len(image.mean) == len(image.std) == image.channels:
                raise ValueError("mean and std have one number a channel")
        if self.preprocess.resize < self.preprocess.size:
            raise ValueError("resize must not be smaller than size")
        if not isinstance(self.backbone.get("name"), str):
            raise ValueError("it names no backbone")
        return self


def _refuse_misfit(
    file: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], image: ImageSpec, plugins: Plugins
) -> None:
    """Compare the weights with an outline of the network, which takes no memory, before the network is made."""
    try:
        with torch.device("meta"):
            outline = _empty(settings, image, None, plugins).export_state()
    except (NotImplementedError, RuntimeError):
        return  # a network that looks at its weights while it is made has no outline
    wanted = {name: tuple(tensor.shape) for name, tensor in outline.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = odd[0]
        raise RunDirError(
            f"{file} is damaged: its weights are not those of {settings['name']:.60}: '{name:.60}' is of shape "
            f"{found.get(name, 'none')!s:.60}, expected {wanted.get(name, 'none')!s:.60}."
        )


def _empty(settings: Mapping[str, Any], image: ImageSpec, module: nn.Module | None, plugins: Plugins) -> Backbone:
    """The network without its weights."""
    if module is not None:
        return module if isinstance(module, Backbone) else WrappedBackbone(module, image)
    if settings["name"] == STAND_IN:
        kind = f"{settings.get('type', 'module')!s:.60}"
        raise ConfigError(f"this backbone is your own {kind}: load_backbone(path, module={kind}(...)).")
    table = {**settings, "pretrained": False} if settings.get("pretrained") else settings  # the file has the weights
    result: Backbone = validate(_Named, {"backbone": table}, registry=plugins).backbone.build(image)
    return result
