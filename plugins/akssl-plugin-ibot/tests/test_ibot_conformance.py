"""The conformance kit of akssl."""

from __future__ import annotations

import pytest

from akssl_core.testing import Check, checks

ALL = [
    *checks("ibot"),
    *checks("ibot", kind="loss"),
    *checks("ibot_patch", kind="loss"),
]


@pytest.mark.parametrize("check", ALL, ids=lambda check: f"{check.subject.component.name}-{check}")
def test_conformance(check: Check) -> None:
    check()
