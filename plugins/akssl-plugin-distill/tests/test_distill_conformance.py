"""The conformance kit of akssl, for features and for likenesses with patch tokens."""

from __future__ import annotations

import pytest

from akssl_core.testing import Check, checks

TEACHER = {"source": "random", "backbone": {"name": "resnet_tiny", "widths": [4, 4, 8, 8]}}
VARIANTS = ("feature", "similarity+tokens")
LOSSES = ("distill_feature", "distill_feature_tokens", "distill_similarity", "distill_tokens")

ALL = [
    *(
        pytest.param(check, id=f"{variant}-{check}")
        for variant in VARIANTS
        for check in checks("distill", settings={"teacher": TEACHER, "variant": variant})
    ),
    *(pytest.param(check, id=f"{loss}-{check}") for loss in LOSSES for check in checks(loss, kind="loss")),
]


@pytest.mark.parametrize("check", ALL)
def test_conformance(check: Check) -> None:
    check()
