"""The conformance kit of akssl on a convolutional network and a vision transformer of timm."""

from __future__ import annotations

import pytest

from akssl_core.testing import Check, checks

ALL = [*checks("timm/test_resnet", kind="backbone"), *checks("timm/test_vit", kind="backbone")]


@pytest.mark.parametrize("check", ALL, ids=lambda check: f"{check.subject.component.name}-{check}")
def test_conformance(check: Check) -> None:
    check()
