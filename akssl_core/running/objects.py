"""Stand-ins in a run's configuration for objects that were passed from Python and cannot be rebuilt by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..config.registry import STAND_IN
from ..config.schema import Component, Schema
from ..errors import ConfigError
from ..hookspecs import hookimpl
from ..settings import OBJECTS

if TYPE_CHECKING:
    from ..config.registry import Registry


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
    """Register a stand-in for each kind of object."""
    for kind in OBJECTS:
        registry.add(type(f"{StandIn.__name__}-{kind}", (StandIn,), {"kind": kind}))
