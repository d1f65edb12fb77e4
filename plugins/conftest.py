"""What the tests of all plugins share with those of the core."""

from on_the_cpu import on_the_cpu

__all__ = ["on_the_cpu"]
