"""Checks that take a little longer: training does not collapse, and features beat those of random weights."""

from __future__ import annotations

import torch

from ..evaluation import spectrum, verdict
from .check import expect, rule
from .subject import BATCH, IMAGES, MethodSubject, patterns

COLLAPSE_STEPS = 120
PLACES = 96  # images of the learning check
SPREAD = 0.05  # of an untrained toy network's std ratio; a collapsed one keeps far less


@rule(
    "method", cure="look for a missing stop-gradient, a teacher that is sharper than its student, or a missing centre"
)
def training_does_not_collapse(subject: MethodSubject) -> None:
    """After a short training, features still tell images apart."""
    images = patterns(IMAGES, 3, 16, seed=5)
    plan = subject.plan(train={"steps": COLLAPSE_STEPS}, epochs=COLLAPSE_STEPS * BATCH // IMAGES)
    with torch.no_grad():
        before = spectrum(plan.method.encoder.eval()(images))
    losses = subject.train(plan).losses
    with torch.no_grad():
        after = spectrum(plan.method.encoder.eval()(images))
    healthy = verdict(after) == "healthy" and after.std_ratio > SPREAD * before.std_ratio
    expect(
        healthy,
        f"std ratio of the features {before.std_ratio:.3g} -> {after.std_ratio:.3g}, "
        f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {COLLAPSE_STEPS} steps",
    )
