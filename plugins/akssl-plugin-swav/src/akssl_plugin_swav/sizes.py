"""How many prototypes and queue rows suit the data, the batch and the length of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from akssl_core import Choice, ConfigError, Facts, dist

IMAGES_PER_PROTOTYPE = 10  # a cluster of fewer images tells images apart, not kinds of images
HIGHEST_RATE = 0.6 / 256  # learning rate per image of a batch: the paper has 0.6 at 256 and 4.8 at 4096
ROWS_PER_PROTOTYPE = 4096 / 3000  # of one assignment, in the paper: a batch of 4096, or 256 and a queue of 3840


def choose(config: Any, facts: Facts) -> Mapping[str, Choice]:
    """The settings that must change for this data, batch and length."""
    choices: dict[str, Choice] = {}
    clusters, clusters_why = config.prototypes, ""
    if (most := max(2, facts.images // IMAGES_PER_PROTOTYPE)) < clusters:
        clusters, clusters_why = most, f"at most a tenth of the {facts.images} training images"
    queue, queue_why = _queue_size(config.queue_size, clusters, facts)
    if (rows := _batch_rows(facts) + queue) < clusters:
        clusters, clusters_why = max(2, rows), f"at most the {rows} samples that batch and queue bring together"
    if clusters_why:
        choices["prototypes"] = Choice(clusters, clusters_why)
    if queue_why:
        choices["queue_size"] = Choice(queue, queue_why)
    latest = math.floor(100 * max(0.0, facts.epochs / 2 - _fill_epochs(queue, facts))) / 100
    if queue and config.queue_from_epoch > latest:
        choices["queue_from_epoch"] = Choice(latest, "so that the queue is full halfway through the run")
    if config.freeze_prototypes_epochs > facts.epochs / 10:
        choices["freeze_prototypes_epochs"] = Choice(round(facts.epochs / 10, 4), "at most a tenth of the run")
    return choices


def _queue_size(size: int, prototypes: int, facts: Facts) -> tuple[int, str]:
    """The queue's size for so many prototypes, and why it is another than `size` ("" where it is not).

    Rounding down to whole batches leaves no queue where the batch is larger than the queue: the paper's large
    batches have none. A recipe without a queue gets one where the batch is too small for its prototypes.
    """
    batch, rows = facts.batch_size, _batch_rows(facts)
    wanted, why = size, f"a multiple of the batch of {batch}"
    if size < batch:
        why = f"the batch of {batch} is larger than a queue of {size}"
    if not size and rows < prototypes:
        wanted = math.ceil((ROWS_PER_PROTOTYPE * prototypes - rows) / batch) * batch
        why = f"a batch of {rows} is small for {prototypes} prototypes"
    seen = int(facts.images * facts.epochs)
    for most, limit in (
        (facts.images - batch, f"batch and queue together at most the {facts.images} training images"),
        (seen // 2, f"full before half of the {seen} images are seen"),
    ):
        if most < wanted:
            wanted, why = max(0, most), limit
    wanted = wanted // batch * batch
    return wanted, why if wanted != size else ""


def _fill_epochs(size: int, facts: Facts) -> float:
    """How many epochs it takes to fill a queue."""
    steps = max(1, facts.images // facts.batch_size)
    return size / facts.batch_size / steps


def _batch_rows(facts: Facts) -> int:
    """How many samples of the current batch one assignment sees: those of one micro-batch on all processes."""
    return facts.forward_size * dist.world()


def check(config: Any, facts: Facts) -> Sequence[str]:
    """Warnings about prototypes, queue and learning rate.

    Raises:
        ConfigError: the queue does not hold a whole number of batches.
    """
    size, batch = config.queue_size, facts.batch_size
    if size % batch:
        below = size // batch * batch
        raise ConfigError(
            f"method.queue_size: {size} must be a multiple of the batch of {batch}; "
            f"{below or '0 (no queue)'} and {below + batch} are."
        )
    warnings = [*_prototype_warnings(config, facts), *(_queue_warnings(config, facts) if size else ())]
    if facts.peak_rate > 1.01 * HIGHEST_RATE * batch:  # the cifar recipe has just that rate
        warnings.append(
            f"optimizer.lr: a peak of {facts.peak_rate:g} at a batch of {batch}, where the paper's highest is "
            f"{HIGHEST_RATE * batch:.3g}: the recipe's rate belongs to the recipe's batch, and nothing scales it. "
            f"Use --set optimizer.lr={HIGHEST_RATE * batch:.3g} or less, or the recipe's batch."
        )
    return warnings


def _prototype_warnings(config: Any, facts: Facts) -> Sequence[str]:
    warnings = []
    rows = _batch_rows(facts) + config.queue_size
    if config.prototypes > rows:
        warnings.append(
            f"method.prototypes: {config.prototypes} share {rows} samples (batch and queue), so each gets less than "
            f"one sample's weight and codes are forced apart; use at most {rows}, a larger batch or method.queue_size."
        )
    if config.freeze_prototypes_epochs >= facts.epochs:
        warnings.append(
            f"method.freeze_prototypes_epochs: {config.freeze_prototypes_epochs:g} is the whole run of "
            f"{facts.epochs:.3g}, so the prototypes never learn; use less than {facts.epochs:.3g}."
        )
    return warnings


def _queue_warnings(config: Any, facts: Facts) -> Sequence[str]:
    warnings = []
    if config.queue_size > facts.images:
        warnings.append(
            f"method.queue_size: {config.queue_size} is more than the {facts.images} training images, so one "
            f"assignment holds images several times; use at most {facts.images // facts.batch_size * facts.batch_size}."
        )
    full = config.queue_from_epoch + _fill_epochs(config.queue_size, facts)
    if full >= facts.epochs:
        warnings.append(
            f"method.queue_from_epoch: the queue is full after {full:.3g} of {facts.epochs:.3g} epochs, so it is never "
            f"used; start it earlier, or set method.queue_size to 0."
        )
    return warnings
