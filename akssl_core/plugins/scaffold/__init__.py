"""A new plugin from a template: a complete distribution whose component works and whose tests pass."""

from .files import create as create
from .names import KINDS as KINDS

__all__ = ["KINDS", "create"]
