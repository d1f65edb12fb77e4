"""AKSSL: self-supervised image backbones, every method an installable plugin.

The names below are all that plugins and users need. They are imported on first use, so that listing plugins or
asking for help never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import dist, masks, nn
    from . import sklearn as sklearn
    from .augment import Augmentation, ViewGroup, ViewPolicy
    from .backbone import TOKEN_DIALECTS, Backbone, Counterpart, Features, Keys, Stock, TokenBackbone
    from .backbone.weights import Account, load_weights
    from .config.registry import Registry
    from .config.schema import AugmentationRef, BackboneRef, Component, FilePath, LossRef, Schema, absolute_path
    from .data.arrays import Arrays, TensorImages
    from .data.base import Batch, DatasetSource, HoldOutSource, ImageSet, ImageSpec, Pixels, Views, suitable_size
    from .data.decode import Unreadable, decode_image, image_header
    from .data.decoders import FileDecoder
    from .data.labels import encode_labels
    from .data.prepare import PreparedData
    from .data.preprocess import Preprocess, view_as
    from .data.scan import nearest_path
    from .data.stored import ImageStore, StoredImages
    from .draws import Draws
    from .errors import AksslError, ConfigError, DataError, PluginError, RunDirError, RunStopped, did_you_mean
    from .evaluation.classifying import Finetuned, finetune
    from .evaluation.copies import Deduplicated, dedup
    from .evaluation.embedding import Embedded, embed
    from .evaluation.judging import evaluate
    from .evaluation.predicting import Predicted, predict
    from .evaluation.result import Evaluation
    from .evaluation.searching import Searched, search
    from .examining import Examined, Finding, doctor
    from .exporting import Exported, export
    from .exporting.backbone_file import load_backbone
    from .exporting.classifier import Classifier, load_classifier
    from .exporting.weights import BackboneSource, LoadedBackbone
    from .hookspecs import hookimpl
    from .loss import KnownValue, Loss
    from .method import Artefacts, Choice, Course, Curve, Facts, Landmark, Method, ParamRule, Published, Shown
    from .metrics.diagnosis import Diagnosis
    from .plugins.lookup import Installed, Location, build, find, methods
    from .plugins.manager import Plugins
    from .reporting.comparison import Compared, compare
    from .running.adapt import adapt
    from .running.convert import Converted, convert
    from .running.explain import Explained, explain
    from .running.launch import resume, run
    from .running.publish import PublishedFolder, publish
    from .running.result import Report, Result, prepare, report
    from .schedule import (
        FractionSchedule,
        LearningRate,
        NonNegativeSchedule,
        Now,
        PositiveSchedule,
        Schedule,
        cosine,
        linear,
    )
    from .sweeps import Chosen, Sweep, Trial, choose, sweep
    from .training.callback import Callback, Logger
    from .training.recorder import Interrupted

_ROOMS = {
    "augment": "Augmentation ViewGroup ViewPolicy",
    "backbone": "Backbone Counterpart Features Keys Stock TOKEN_DIALECTS TokenBackbone",
    "backbone.weights": "Account load_weights",
    "config.registry": "Registry",
    "config.schema": "AugmentationRef BackboneRef Component FilePath LossRef Schema absolute_path",
    "data": "Arrays Batch DatasetSource FileDecoder HoldOutSource ImageSet ImageSpec ImageStore Pixels Preprocess "
    "StoredImages TensorImages Unreadable Views decode_image encode_labels image_header nearest_path suitable_size "
    "view_as",
    "data.prepare": "PreparedData",
    "draws": "Draws",
    "errors": "AksslError ConfigError DataError PluginError RunDirError RunStopped did_you_mean",
    "evaluation.classifying": "Finetuned finetune",
    "evaluation.copies": "Deduplicated dedup",
    "evaluation.embedding": "Embedded embed",
    "evaluation.judging": "evaluate",
    "evaluation.predicting": "Predicted predict",
    "evaluation.result": "Evaluation",
    "evaluation.searching": "Searched search",
    "examining": "Examined Finding doctor",
    "exporting": "Exported export",
    "exporting.backbone_file": "load_backbone",
    "exporting.classifier": "Classifier load_classifier",
    "exporting.weights": "BackboneSource LoadedBackbone",
    "hookspecs": "hookimpl",
    "loss": "KnownValue Loss",
    "metrics.diagnosis": "Diagnosis",
    "method": "Artefacts Choice Course Curve Facts Landmark Method ParamRule Published Shown",
    "plugins.lookup": "Installed Location build find methods",
    "plugins.manager": "Plugins",
    "reporting.comparison": "Compared compare",
    "running.adapt": "adapt",
    "running.convert": "Converted convert",
    "running.explain": "Explained explain",
    "running.launch": "resume run",
    "running.publish": "PublishedFolder publish",
    "running.result": "Report Result prepare report",
    "schedule": "FractionSchedule LearningRate NonNegativeSchedule Now PositiveSchedule Schedule cosine linear",
    "sweeps": "Chosen Sweep Trial choose sweep",
    "training.callback": "Callback Logger",
    "training.recorder": "Interrupted",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}
_MODULES = ("dist", "masks", "nn", "sklearn")  # the last needs an extra, so it is no part of `import *`

__all__ = [
    "TOKEN_DIALECTS", "Account", "AksslError", "Arrays", "Artefacts", "Augmentation", "AugmentationRef", "Backbone",
    "BackboneRef", "BackboneSource", "Batch", "Callback", "Choice", "Chosen", "Classifier", "Compared", "Component",
    "ConfigError", "Converted", "Counterpart", "Course", "Curve", "DataError", "DatasetSource", "Deduplicated",
    "Diagnosis", "Draws", "Embedded", "Evaluation", "Examined", "Explained", "Exported", "Facts", "Features",
    "FileDecoder", "FilePath", "Finding", "Finetuned", "FractionSchedule", "HoldOutSource", "ImageSet", "ImageSpec",
    "ImageStore", "Installed", "Interrupted", "Keys", "KnownValue", "Landmark", "LearningRate", "LoadedBackbone",
    "Location", "Logger", "Loss", "LossRef", "Method", "NonNegativeSchedule", "Now", "ParamRule", "Pixels",
    "PluginError", "Plugins", "PositiveSchedule", "Predicted", "PreparedData", "Preprocess", "Published",
    "PublishedFolder",
    "Registry", "Report", "Result", "RunDirError", "RunStopped", "Schedule", "Schema", "Searched", "Shown", "Stock",
    "StoredImages", "Sweep", "TensorImages", "TokenBackbone", "Trial", "Unreadable", "ViewGroup", "ViewPolicy",
    "Views", "absolute_path", "adapt", "build", "choose", "compare", "convert", "cosine", "decode_image", "dedup",
    "did_you_mean", "dist", "doctor", "embed", "encode_labels", "evaluate", "explain", "export", "find", "finetune",
    "hookimpl", "image_header", "linear", "load_backbone", "load_classifier", "load_weights", "masks", "methods",
    "nearest_path", "nn", "predict", "prepare", "publish", "report", "resume", "run", "search", "suitable_size",
    "sweep", "view_as",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module(".plugins.installed", __name__).version("akssl-core")
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'akssl_core' has no attribute '{name}'")
    room = importlib.import_module(f".{_ROOM_OF[name]}", __name__)
    value = getattr(room, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "sklearn", "__version__"]
