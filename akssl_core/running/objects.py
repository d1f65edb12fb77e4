"""Stand-ins in a run's configuration for objects that were passed from Python and cannot be rebuilt by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..augment.base import Augmentation, ViewGroup
from ..backbone.base import Backbone, Features
from ..config.schema import Schema
from ..data.base import DatasetSource, ImageSet
from ..errors import ConfigError
from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from ..config.registry import Registry


class Given(Schema):
    """What is known of an object that came from Python."""

    type: str = Field("object", description="class of the object that was passed")


def _refuse(what: str, config: Any) -> ConfigError:
    return ConfigError(
        f"{what}: this run was started from Python with an object ({config.type}) that has no name. "
        f"Pass it again: akssl_core.run(..., {what}=...) or akssl_core.resume(run_dir, {what}=...)."
    )


class CustomData(DatasetSource):
    """Data that was passed as a Python object."""

    name = "custom"
    Config = Given

    def __init__(self, config: Given, image_size: int | None = None) -> None:
        raise _refuse("data", config)

    @property
    def natural_size(self) -> int:  # noqa: D102 - never reached, the constructor refuses
        raise AssertionError

    def train(self) -> ImageSet:  # noqa: D102
        raise AssertionError


class CustomBackbone(Backbone):
    """A backbone that was passed as a Python object."""

    name = "custom"
    Config = Given

    def __init__(self, config: Given, image: Any = None) -> None:
        raise _refuse("backbone", config)

    def features(self, images: Tensor) -> Features:  # noqa: D102
        raise AssertionError


class CustomAugmentation(Augmentation):
    """An augmentation that was passed as Python callables."""

    name = "custom"
    Config = Given

    def __init__(self, config: Given, image: Any = None) -> None:
        raise _refuse("augmentation", config)

    def groups(self) -> Sequence[ViewGroup]:  # noqa: D102
        raise AssertionError


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Register the stand-ins."""
    for component in (CustomData, CustomBackbone, CustomAugmentation):
        registry.add(component)
