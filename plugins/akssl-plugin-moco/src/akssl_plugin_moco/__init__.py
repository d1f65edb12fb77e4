"""MoCo v2 and v3: contrast a query with the keys of a slowly moving copy of its encoder."""

from __future__ import annotations

from akssl_core import Registry, hookimpl

from .v2 import InfoNCEQueue, MoCoV2
from .v3 import InfoNCEMoCoV3, MoCoV3

__all__ = ["InfoNCEMoCoV3", "InfoNCEQueue", "MoCoV2", "MoCoV3"]


@hookimpl
def akssl_register(registry: Registry) -> None:
    """Add both methods and their losses."""
    for component in (InfoNCEQueue, MoCoV2, InfoNCEMoCoV3, MoCoV3):
        registry.add(component)
