"""Checks that take a little longer: training does not collapse, and features beat those of random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ..data import DEFAULT_SOURCE
from ..metrics.diagnosis import verdict
from ..metrics.health import spectrum
from ..running.launch import run
from .check import expect, rule
from .subject import BATCH, IMAGES, MethodSubject, patterns

COLLAPSE_STEPS = 120
IMAGES_SEEN = {"size": 5000, "epochs": 8}
MARGIN = 5.0  # points of k-NN accuracy that 40,000 images must add to random weights
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


@rule(
    "method", cure="choose a recipe that learns in a few minutes: larger steps, narrower heads, milder views", slow=True
)
def features_beat_random_weights(subject: MethodSubject) -> None:
    """The default recipe, on 40,000 small images, makes features better than those of the same network untrained."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            {"name": subject.component.name, **subject.settings},
            data={"name": DEFAULT_SOURCE, "size": IMAGES_SEEN["size"]},
            backbone=subject.backbone,
            epochs=IMAGES_SEEN["epochs"],
            out=Path(folder) / "run",
            report=False,
            plugins=subject.plugins,
        )
    trained, random = result.metrics["knn_top1"], result.metrics["knn_random_init"]
    expect(trained > random + MARGIN, f"k-NN accuracy {random:.1f} % untrained, {trained:.1f} % trained")
