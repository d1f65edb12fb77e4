"""Rules about the settings of a run, before it starts."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..optim import OptimizerConfig
from ..running.estimate import averages, steps
from ..running.fit import TRIAL, recipe_notes
from ..schedule import Schedule
from .base import Evidence, PlannedRun, before_run

SMALL_BATCH_NORM = 16  # images; below, the statistics are mostly noise (Wu and He 2018, arXiv 1803.08494, figure 1)
LARGE_BATCH = 1024
SMALL_IMAGE = 64
HIGHEST_LR = {"adamw": 0.02, "lars": 20.0, "sgd": 3.0}
HIGHEST_DECAY = {"adamw": 0.5, "lars": 0.01, "sgd": 0.02}


def rates(run: PlannedRun) -> OptimizerConfig:
    """The settings of the optimizer."""
    config = run.plan.spec.optimizer.config
    assert isinstance(config, OptimizerConfig)
    return config


def batch(run: PlannedRun) -> int:
    """Images a step."""
    return run.plan.spec.train.batch_size or 1


@before_run(
    cause="the method, or the engine, knows that these settings go badly together.", cure="do what the sentence says."
)
def advice(run: PlannedRun) -> Evidence:
    """Warnings of the method's own `check` and of the engine: queues, prototypes, temperatures, frozen parts, norms."""
    return " ".join(run.plan.warnings) or None


@before_run(
    cause="the default recipe is for small images and minutes, and nobody named another.",
    cure="name the recipe that was made for such images, if you have the time and the hardware that it needs.",
)
def recipe_for_small_images(run: PlannedRun) -> Evidence:
    """Large images under the default recipe of a method that has one for them."""
    return " ".join(recipe_notes(run.plan.spec, run.plan.provenance, run.plan.source.natural_size)) or None


@before_run(
    cause="every process and micro-batch needs as many images as every other.",
    cure="use a batch that is a multiple of processes x train.accumulate.",
)
def batch_does_not_divide(run: PlannedRun) -> Evidence:
    """A batch that cannot be shared evenly among processes and micro-batches."""
    shares = run.devices * run.plan.spec.train.accumulate
    return f"train.batch_size {batch(run)} over {shares} shares." if batch(run) % shares else None


@before_run(
    cause="a convolution of stride 2 and a max-pool leave a small image few places, so that little can be told apart.",
    cure="set backbone.stem to cifar or auto, or use larger images.",
)
def stem_for_large_images(run: PlannedRun) -> Evidence:
    """A backbone whose first layers shrink small images to a quarter."""
    layers = list(run.plan.backbone.modules())
    first = next((module for module in layers if isinstance(module, nn.Conv2d)), None)
    strides = first is not None and first.stride[0] == 2 and first.kernel_size[0] >= 7
    pools = any(isinstance(module, nn.MaxPool2d) for module in layers)
    size = run.plan.image.size
    if not strides or not pools or size >= SMALL_IMAGE:
        return None
    return f"a 7x7 convolution of stride 2 and a max-pool on images of {size} px: {size // 32 or 1} places at the end."


@before_run(
    cause="means and variances over few images are mostly noise, and the noise differs between the views.",
    cure="use a larger batch, or a backbone and heads without batch norms.",
)
def batch_norm_with_few_images(run: PlannedRun) -> Evidence:
    """Batch norms that see fewer than 16 images at a time."""
    if not any(isinstance(module, _BatchNorm) for module in run.plan.method.modules()):
        return None
    seen = run.plan.facts.forward_size
    if not run.plan.method.shared_batch_norm:
        seen //= max(run.plan.method.batch_norm_groups, run.devices)
    return f"batch norms see {seen} images at a time." if seen < SMALL_BATCH_NORM else None


@before_run(cause="steps this large seldom stay stable with this optimizer.", cure="lower optimizer.lr.")
def rate_too_high(run: PlannedRun) -> Evidence:
    """A peak learning rate beyond what any published recipe of the optimizer uses."""
    peak, name = run.plan.facts.peak_rate, run.plan.spec.optimizer.name
    most = HIGHEST_LR.get(name)
    return f"{name} at a peak of {peak:g}; up to {most:g} is known to work." if most and peak > most else None


@before_run(cause="the weights are pulled to zero faster than they learn.", cure="lower optimizer.weight_decay.")
def decay_too_strong(run: PlannedRun) -> Evidence:
    """A weight decay beyond what any published recipe of the optimizer uses."""
    decay, name = rates(run).weight_decay, run.plan.spec.optimizer.name
    value = max(decay.start, decay.start if decay.end is None else decay.end)
    most = HIGHEST_DECAY.get(name)
    return f"{name} with weight decay {value:g}; up to {most:g} is known to work." if most and value > most else None


@before_run(
    cause="the first steps of a large batch are large, from weights that mean nothing yet.",
    cure="set optimizer.lr.warmup to about a tenth of the epochs.",
)
def no_warmup(run: PlannedRun) -> Evidence:
    """A large batch without a warm-up of the learning rate."""
    bare = batch(run) >= LARGE_BATCH and not rates(run).lr.warmup
    return f"a batch of {batch(run)} starts at the full learning rate." if bare else None


def _schedules(run: PlannedRun) -> Iterator[tuple[str, Schedule]]:
    sections = {"method": run.plan.spec.method.config, "optimizer": run.plan.spec.optimizer.config}
    for section, config in sections.items():
        for name in type(config).model_fields:
            value = getattr(config, name)
            if isinstance(value, Schedule):
                yield f"{section}.{name}", value


@before_run(
    cause="the schedule was made for a longer run.",
    cure="use more epochs, or set the schedule's 'over' to the epochs of the run.",
)
def schedule_longer_than_the_run(run: PlannedRun) -> Evidence:
    """A schedule whose end lies behind the run's."""
    epochs = steps(run.plan).epochs
    late = [
        f"{name} takes {schedule.over + schedule.warmup:g} epochs"
        for name, schedule in _schedules(run)
        if schedule.over is not None and schedule.over + schedule.warmup > epochs + 1
    ]
    return f"{', '.join(late)}; the run has {epochs:.3g}." if late else None


@before_run(
    cause="the slow copy forgets its random start only over its half-life.",
    cure="lower method.momentum, or train longer.",
)
def slow_copy_too_slow(run: PlannedRun) -> Evidence:
    """A moving average whose half-life is longer than half of the run."""
    total = steps(run.plan).total_steps
    slow = [start for start, _ in averages(run.plan) if start > total / 2]
    return f"a half-life of {slow[0]:.3g} steps in a run of {total}." if slow else None


@before_run(cause="no method learns anything in so few steps.", cure="use more epochs, or a smaller batch.")
def few_steps(run: PlannedRun) -> Evidence:
    """A run of fewer than 200 steps."""
    total = steps(run.plan).total_steps
    return f"{total} optimizer steps." if total < TRIAL else None


@before_run(cause="nothing of the backbone would be trained.", cure="set requires_grad on its parameters.")
def frozen_backbone(run: PlannedRun) -> Evidence:
    """A backbone none of whose parameters is trained."""
    parameters = list(run.plan.method.backbone.parameters())
    frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
    return f"all {len(parameters)} parameters of the backbone are frozen." if frozen else None


@before_run(cause="rows are what tells of a collapse, and there would be one or two.", cure="lower train.log_every.")
def few_rows(run: PlannedRun) -> Evidence:
    """Rows of metrics so rare that nothing can be seen in them."""
    every, now = run.plan.spec.train.log_every or 1, steps(run.plan)
    rows = now.total_steps // min(every, now.steps_per_epoch)
    return f"{rows} rows in {now.total_steps} steps." if rows < 3 and now.total_steps >= TRIAL else None


@before_run(
    cause="a stopped run goes on from its last checkpoint; before the first one all is lost.",
    cure="lower train.checkpoint_every.",
)
def rare_checkpoints(run: PlannedRun) -> Evidence:
    """A long run that saves nothing before its end."""
    every, total = run.plan.spec.train.checkpoint_every or 1, steps(run.plan).total_steps
    return f"a checkpoint every {every} of {total} steps." if every >= total and total > 10 * TRIAL else None
