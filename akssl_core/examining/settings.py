"""Rules about the settings of a run, and what it needs of the machine, before it starts."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..optim import OptimizerConfig
from ..running.estimate import averages, memory, steps
from ..running.rules import TRIAL, recipe_notes
from ..schedule import Schedule
from .base import Evidence, PlannedRun, before_run

SMALL_BATCH_NORM = 16  # images; below, the statistics are mostly noise (Wu and He 2018, arXiv 1803.08494, figure 1)
LARGE_BATCH = 1024
SMALL_IMAGE = 64
LARGE_IMAGE = 128  # px
HIGHEST_LR = {"adamw": 0.02, "lars": 20.0, "sgd": 3.0}
HIGHEST_DECAY = {"adamw": 0.5, "lars": 0.01, "sgd": 0.02}
GIB = 2**30


@before_run(
    cause="the run would stop within its first steps.",
    cure="use a smaller batch, smaller images, a smaller backbone, or --precision bf16.",
)
def memory_too_small(run: PlannedRun) -> Evidence:
    """An estimate of memory (see `akssl explain`) beyond what is free."""
    need = memory(run.plan, devices=run.devices).total
    if run.plan.hardware.device.type == "cpu":
        need *= run.devices
    free = run.machine.memory
    return f"about {need / GIB:.1f} GiB of {free / GIB:.1f} GiB that are free." if free and need > free else None


@before_run(cause="a checkpoint that cannot be written ends the run.", cure="free some space, or lower train.keep.")
def disk_too_small(run: PlannedRun) -> Evidence:
    """Checkpoints that do not fit on the disk."""
    state = memory(run.plan)
    kept = run.plan.spec.train.keep + 2  # the best, and the one that is being written
    need, free = kept * (state.weights + state.training), run.machine.disk
    return f"{kept} checkpoints take {need / GIB:.2f} GiB, {free / GIB:.2f} GiB are free." if need > free else None


@before_run(
    cause="those that share a core wait for each other.",
    cure="use at most as many train.workers as there are cores left by the training processes.",
)
def more_workers_than_cores(run: PlannedRun) -> Evidence:
    """More workers than cores."""
    workers = (run.plan.spec.train.workers or 0) * run.devices
    return f"{workers} workers on {run.machine.cores} cores." if workers > run.machine.cores else None


@before_run(cause="there is nothing that workers could do.", cure="leave --workers out.")
def workers_without_use(run: PlannedRun) -> Evidence:
    """Workers for images that are neither decoded by threads nor read by worker processes."""
    workers, images = run.plan.spec.train.workers, run.plan.images
    useful = images.decoder is not None or images.loading == "process"
    return f"{workers} workers, and images that lie ready in memory or a file." if workers and not useful else None


@before_run(cause="each process needs a GPU, or a core, of its own.", cure="use at most as many --devices.")
def more_processes_than_devices(run: PlannedRun) -> Evidence:
    """More processes than GPUs, or than cores on a CPU."""
    on_cpu = run.plan.hardware.device.type == "cpu"
    most = run.machine.cores if on_cpu else run.machine.gpus
    return f"{run.devices} processes for {most} {'cores' if on_cpu else 'GPUs'}." if run.devices > most else None


@before_run(
    cause="CPUs compute in fp16 slowly or not at all, and its narrow range makes small gradients zero.",
    cure="use --precision auto, bf16 or fp32.",
)
def fp16_on_a_cpu(run: PlannedRun) -> Evidence:
    """fp16 without a GPU."""
    hardware = run.plan.hardware
    return "precision fp16 on a CPU." if hardware.precision == "fp16" and hardware.device.type == "cpu" else None


@before_run(
    cause="the run was sent to the CPU, torch was built without CUDA, or it finds no GPU: the finding says which.",
    cure="use a smaller --image-size, or what the finding says.",
)
def large_images_on_a_cpu(run: PlannedRun) -> Evidence:
    """Views of more than 128 px without a GPU: days for what a GPU does in an hour."""
    size, machine = run.plan.image.size, run.machine
    if run.plan.hardware.device.type != "cpu" or size <= LARGE_IMAGE:
        return None
    if run.plan.spec.train.device == "cpu":
        cause = f"train.device is cpu ({run.plan.provenance['train.device']})."
        cure = "leave it out, for torch sees a GPU" if machine.gpus else "take a machine with a GPU"
    elif machine.cuda is None:
        cause, cure = "this torch was built without CUDA.", "install a torch with CUDA where there is a GPU"
    else:
        why = "there is none, its driver is missing or too old, or CUDA_VISIBLE_DEVICES hides it."
        cause = f"torch was built with CUDA {machine.cuda} and finds no GPU: {why}"
        cure = "see that nvidia-smi lists a GPU"
    return f"views of {size} px on a CPU.", cause, f"{cure}, or use a smaller --image-size."


# -- settings --------------------------------------------------------------------------------------
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


@before_run(
    cause="the schedule was made for a longer run.",
    cure="use more epochs, or set the schedule's 'over' to the epochs of the run.",
)
def schedule_longer_than_the_run(run: PlannedRun) -> Evidence:
    """A schedule whose end lies behind the run's."""
    epochs = steps(run.plan).epochs
    sections = {"method": run.plan.spec.method.config, "optimizer": run.plan.spec.optimizer.config}
    late = [
        f"{section}.{name} takes {value.over + value.warmup:g} epochs"
        for section, config in sections.items()
        for name, value in config
        if isinstance(value, Schedule) and value.over is not None and value.over + value.warmup > epochs + 1
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
