"""AKSSL: self-supervised image backbones, every method an installable plugin.

The names below are all that plugins and users need. They are imported on first use, so that listing plugins or
asking for help never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import dist as dist
    from . import nn as nn
    from . import sklearn as sklearn
    from .augment import Augmentation as Augmentation
    from .augment import ViewGroup as ViewGroup
    from .augment import ViewPolicy as ViewPolicy
    from .backbone import Backbone as Backbone
    from .backbone import Counterpart as Counterpart
    from .backbone import Features as Features
    from .backbone import TokenBackbone as TokenBackbone
    from .config.registry import Registry as Registry
    from .config.schema import AugmentationRef as AugmentationRef
    from .config.schema import BackboneRef as BackboneRef
    from .config.schema import Component as Component
    from .config.schema import FilePath as FilePath
    from .config.schema import LossRef as LossRef
    from .config.schema import Schema as Schema
    from .config.schema import absolute_path as absolute_path
    from .data import Arrays as Arrays
    from .data import Batch as Batch
    from .data import DatasetSource as DatasetSource
    from .data import HoldOutSource as HoldOutSource
    from .data import ImageSet as ImageSet
    from .data import ImageSpec as ImageSpec
    from .data import ImageStore as ImageStore
    from .data import Pixels as Pixels
    from .data import Preprocess as Preprocess
    from .data import StoredImages as StoredImages
    from .data import TensorImages as TensorImages
    from .data import Unreadable as Unreadable
    from .data import Views as Views
    from .data import decode_image as decode_image
    from .data import encode_labels as encode_labels
    from .data import image_header as image_header
    from .data import nearest_path as nearest_path
    from .data import suitable_size as suitable_size
    from .data.prepare import PreparedData as PreparedData
    from .draws import Draws as Draws
    from .errors import AksslError as AksslError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import PluginError as PluginError
    from .errors import RunDirError as RunDirError
    from .errors import RunStopped as RunStopped
    from .errors import did_you_mean as did_you_mean
    from .evaluation import Evaluation as Evaluation
    from .evaluation import evaluate as evaluate
    from .evaluation.embedding import Embedded as Embedded
    from .evaluation.embedding import embed as embed
    from .examining.base import Finding as Finding
    from .examining.doctor import Examined as Examined
    from .examining.doctor import doctor as doctor
    from .exporting import Exported as Exported
    from .exporting import export as export
    from .exporting.backbone_file import load_backbone as load_backbone
    from .hookspecs import hookimpl as hookimpl
    from .loss import KnownValue as KnownValue
    from .loss import Loss as Loss
    from .method import Choice as Choice
    from .method import Curve as Curve
    from .method import Facts as Facts
    from .method import Landmark as Landmark
    from .method import Method as Method
    from .method import ParamRule as ParamRule
    from .method import Published as Published
    from .metrics.diagnosis import Diagnosis as Diagnosis
    from .plugins.lookup import Installed as Installed
    from .plugins.lookup import Location as Location
    from .plugins.lookup import build as build
    from .plugins.lookup import find as find
    from .plugins.lookup import methods as methods
    from .plugins.manager import Plugins as Plugins
    from .reporting.comparison import Compared as Compared
    from .reporting.comparison import compare as compare
    from .running.explain import Explained as Explained
    from .running.explain import explain as explain
    from .running.launch import resume as resume
    from .running.launch import run as run
    from .running.outputs import Report as Report
    from .running.outputs import prepare as prepare
    from .running.outputs import report as report
    from .running.result import Result as Result
    from .schedule import LearningRate as LearningRate
    from .schedule import Now as Now
    from .schedule import Schedule as Schedule
    from .schedule import cosine as cosine
    from .schedule import linear as linear
    from .sweeps import Sweep as Sweep
    from .sweeps import sweep as sweep
    from .training.callback import Callback as Callback
    from .training.callback import Logger as Logger
    from .training.interrupt import Interrupted as Interrupted

_ROOMS = {
    "augment": "Augmentation ViewGroup ViewPolicy",
    "backbone": "Backbone Counterpart Features TokenBackbone",
    "config.registry": "Registry",
    "config.schema": "AugmentationRef BackboneRef Component FilePath LossRef Schema absolute_path",
    "data": "Arrays Batch DatasetSource HoldOutSource ImageSet ImageSpec ImageStore Pixels Preprocess StoredImages "
    "TensorImages Unreadable Views decode_image encode_labels image_header nearest_path suitable_size",
    "data.prepare": "PreparedData",
    "draws": "Draws",
    "errors": "AksslError ConfigError DataError PluginError RunDirError RunStopped did_you_mean",
    "evaluation": "Evaluation evaluate",
    "evaluation.embedding": "Embedded embed",
    "examining.base": "Finding",
    "examining.doctor": "Examined doctor",
    "exporting": "Exported export",
    "exporting.backbone_file": "load_backbone",
    "hookspecs": "hookimpl",
    "loss": "KnownValue Loss",
    "metrics.diagnosis": "Diagnosis",
    "method": "Choice Curve Facts Landmark Method ParamRule Published",
    "plugins.lookup": "Installed Location build find methods",
    "plugins.manager": "Plugins",
    "reporting.comparison": "Compared compare",
    "running.explain": "Explained explain",
    "running.launch": "resume run",
    "running.outputs": "Report prepare report",
    "running.result": "Result",
    "schedule": "LearningRate Now Schedule cosine linear",
    "sweeps": "Sweep sweep",
    "training.callback": "Callback Logger",
    "training.interrupt": "Interrupted",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}
_MODULES = ("dist", "nn")
_OPTIONAL = ("sklearn",)  # a module that needs an extra, so no part of `import *`

__all__ = sorted([*_ROOM_OF, *_MODULES])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module(".plugins.installed", __name__).version("akssl-core")
    if name in _MODULES + _OPTIONAL:
        return importlib.import_module(f".{name}", __name__)
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'akssl_core' has no attribute '{name}'")
    room = importlib.import_module(f".{_ROOM_OF[name]}", __name__)
    value = getattr(room, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_OPTIONAL, "__version__"]
