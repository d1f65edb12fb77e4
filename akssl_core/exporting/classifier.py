"""A classifier in a file: a backbone with a linear layer, the names of its classes, and its temperature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, Json, ValidationError
from torch import Tensor, nn

from ..backbone import Backbone, Features
from ..config.schema import Schema, first_mistake, user_path
from ..errors import RunDirError
from ..nn import state_digest
from ..plugins.manager import Plugins, installed
from ..rundir.files import tensor_bytes, write_atomic
from .backbone_file import CLASSIFIER_FORMAT, filled, header, read_backbone_file


class Classifier(Backbone):
    """A backbone with a linear layer on top, from images (N, C, H, W) to the probabilities (N, K) of its classes.

    Images are normalised as those of a backbone are; `preprocess` makes them of pictures.
    """

    name = "classifier"
    classes: tuple[str, ...]
    """The K names, in the order of the probabilities."""
    temperature: float
    """What the scores are divided by before the softmax (Guo et al. 2017, arXiv 1706.04599); 1 changes nothing."""

    def __init__(self, backbone: Backbone, classes: Sequence[str], temperature: float = 1.0) -> None:
        super().__init__(Schema(), backbone.image)
        self.backbone, self.head = backbone, nn.Linear(backbone.embed_dim, len(classes))
        self.classes, self.temperature = tuple(classes), temperature
        self.embed_dim, self.preprocess = len(classes), backbone.preprocess

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N, K) float32 before temperature and softmax."""
        result: Tensor = self.head(self.backbone(images)).float()
        return result

    def features(self, images: Tensor) -> Features:
        """The probabilities (N, K)."""
        return Features((self.scores(images) / self.temperature).softmax(1))


class _Header(Schema):
    """What the header of a classifier's file has beside that of a backbone's."""

    classes: Json[tuple[str, ...]] = Field(min_length=2)
    temperature: Json[float] = Field(gt=0, allow_inf_nan=False)


def save_classifier(
    path: Path,
    model: Classifier,
    method: str,
    network: Mapping[str, Any],
    learned_from: Sequence[Mapping[str, str]],
    facts: Mapping[str, Any],
) -> None:
    """Write a classifier; `network` are the settings of its backbone, `facts` is what was measured.

    `learned_from` is what its backbone had learned from, as `header` has it.
    """
    assert model.preprocess is not None
    known = header(method, network, model.backbone, model.preprocess, learned_from)
    own = {
        "classes": json.dumps(model.classes),
        "temperature": json.dumps(model.temperature),
        "measured": json.dumps(dict(facts)),
    }
    state = {f"backbone.{name}": tensor for name, tensor in model.backbone.export_state().items()}
    state |= {f"head.{name}": tensor.detach() for name, tensor in model.head.named_parameters()}
    own |= {"format": CLASSIFIER_FORMAT, "sha256": state_digest(state)}
    write_atomic(path, tensor_bytes(state, {**known, **own}))


def load_classifier(path: Path | str, *, module: nn.Module | None = None, plugins: Plugins | None = None) -> Classifier:
    """A classifier that `finetune` has written, in eval mode; `module` is your own network, if it is on one.

    It maps normalised float images (N, C, H, W) to the probabilities (N, K) of its `classes`; its `preprocess` turns
    PIL images, uint8 tensors or arrays into such images.

    Raises:
        RunDirError: there is no such file, it is no classifier, or it is damaged.
    """
    file = user_path(path)
    if file.is_dir():
        raise RunDirError(
            f"{file} is a folder; expected a file that akssl finetune has written: akssl finetune {file} --out MODEL"
        )
    tensors, metadata, known = read_backbone_file(file, CLASSIFIER_FORMAT)
    try:
        own = _Header.model_validate({name: metadata.get(name, "") for name in _Header.model_fields})
    except ValidationError as error:
        raise RunDirError(f"{file} is damaged: its header is wrong: {first_mistake(error)}.") from error
    parts = parts_of(tensors)
    backbone = filled(file, parts["backbone"], known, module, plugins or installed())
    with torch.random.fork_rng(devices=[]):
        model = Classifier(backbone, own.classes, own.temperature)
    try:
        model.head.load_state_dict(parts["head"])
    except RuntimeError as error:
        wanted = (len(own.classes), backbone.embed_dim)
        raise RunDirError(f"{file} is damaged: the weights of its classes are not of shape {wanted}.") from error
    return model.eval()


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights of a classifier's file, those of its backbone and of its head apart, by the names there."""
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts
