"""The conformance kit of akssl: with balanced targets, and with centred ones beside an earlier teacher."""

from __future__ import annotations

import pytest

from akssl_core.testing import Check, checks

VARIANTS = {
    "sinkhorn": {},
    "center": {"targets": "center", "gram": {"weight": 1.0, "snapshot": 0.1, "begin": 0.2}},
}
LOSSES = ("dinov2", "dinov2_patches", "gram", "koleo")
ALL = [
    *(
        pytest.param(check, id=f"{variant}-{check}")
        for variant, settings in VARIANTS.items()
        for check in checks("dinov2", settings=settings)
    ),
    *(pytest.param(check, id=f"{loss}-{check}") for loss in LOSSES for check in checks(loss, kind="loss")),
]


@pytest.mark.parametrize("check", ALL)
def test_conformance(check: Check) -> None:
    check()
