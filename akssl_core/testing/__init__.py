"""The conformance kit: named checks that every component of a kind must pass, in seconds and on toy data.

Authors of plugins run them with pytest, users with `akssl plugins check NAME`::

    from akssl_core.testing import checks

    @pytest.mark.parametrize("check", checks("my-method"), ids=str)
    def test_conformance(check):
        check()
"""

from .check import Check as Check
from .check import CheckFailed as CheckFailed
from .check import Outcome as Outcome
from .kit import checks as checks

__all__ = ["Check", "CheckFailed", "Outcome", "checks"]
