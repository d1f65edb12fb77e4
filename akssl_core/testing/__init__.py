"""The conformance kit: named checks that every component of a kind must pass, in seconds and on toy data.

Authors of plugins run them with pytest, users with `akssl plugins check NAME`::

    from akssl_core.testing import checks

    @pytest.mark.parametrize("check", checks("my-method"), ids=str)
    def test_conformance(check):
        check()

Beside them stand the toys that tests of one's own need.
"""

from ..config.describe import settings_table as settings_table
from ..optim import drop_frozen as drop_frozen
from .check import Check as Check
from .check import CheckFailed as CheckFailed
from .check import Outcome as Outcome
from .kit import checks as checks
from .toys import ToyBackbone as ToyBackbone
from .toys import config_of as config_of
from .toys import optimizer_of as optimizer_of
from .toys import spec_of as spec_of
from .toys import toy_batch as toy_batch
from .toys import train as train

__all__ = [
    "Check", "CheckFailed", "Outcome", "ToyBackbone", "checks", "config_of", "drop_frozen", "optimizer_of",
    "settings_table", "spec_of", "toy_batch", "train",
]  # fmt: skip
