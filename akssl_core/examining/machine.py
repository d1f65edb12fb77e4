"""Rules about what a run needs of the machine, before it starts."""

from __future__ import annotations

from ..running.estimate import memory
from .base import Case, Found, rule

GIB = 2**30


@rule(
    "plan",
    cause="the run would stop within its first steps.",
    cure="use a smaller batch, smaller images, a smaller backbone, or --precision bf16.",
)
def memory_too_small(case: Case) -> Found:
    """An estimate of memory (see `akssl explain`) beyond what is free."""
    need = memory(case.plan, devices=case.devices).total
    if case.plan.hardware.device.type == "cpu":
        need *= case.devices
    free = case.machine.memory
    return f"about {need / GIB:.1f} GiB of {free / GIB:.1f} GiB that are free." if free and need > free else None


@rule("plan", cause="a checkpoint that cannot be written ends the run.", cure="free some space, or lower train.keep.")
def disk_too_small(case: Case) -> Found:
    """Checkpoints that do not fit on the disk."""
    state = memory(case.plan)
    kept = case.plan.spec.train.keep + 2  # the best, and the one that is being written
    need, free = kept * (state.weights + state.training), case.machine.disk
    return f"{kept} checkpoints take {need / GIB:.2f} GiB, {free / GIB:.2f} GiB are free." if need > free else None


@rule(
    "plan",
    cause="processes that share a core wait for each other.",
    cure="use at most as many train.workers as there are cores left by the training processes.",
)
def more_workers_than_cores(case: Case) -> Found:
    """More worker processes than cores."""
    workers = (case.plan.spec.train.workers or 0) * case.devices
    return f"{workers} workers on {case.machine.cores} cores." if workers > case.machine.cores else None


@rule("plan", cause="these images are not read by worker processes.", cure="leave --workers out.")
def workers_without_use(case: Case) -> Found:
    """Worker processes for images that are read in memory or by threads."""
    workers, loading = case.plan.spec.train.workers, case.plan.images.loading
    idle = workers and loading != "process"
    return (
        f"{workers} workers, and images that are read {'directly' if loading == 'direct' else 'by threads'}."
        if idle
        else None
    )


@rule(
    "plan",
    cause="each process needs a GPU, or a core, of its own.",
    cure="use at most as many --devices.",
)
def more_processes_than_devices(case: Case) -> Found:
    """More processes than GPUs, or than cores on a CPU."""
    cuda = case.plan.hardware.device.type == "cuda"
    most = case.machine.gpus if cuda else case.machine.cores
    return f"{case.devices} processes for {most} {'GPUs' if cuda else 'cores'}." if case.devices > most else None


@rule(
    "plan",
    cause="CPUs compute in fp16 slowly or not at all, and its narrow range makes small gradients zero.",
    cure="use --precision auto, bf16 or fp32.",
)
def fp16_on_a_cpu(case: Case) -> Found:
    """fp16 without a GPU."""
    hardware = case.plan.hardware
    return "precision fp16 on a CPU." if hardware.precision == "fp16" and hardware.device.type == "cpu" else None


@rule(
    "plan",
    cause="torch was built without CUDA, or the driver is missing.",
    cure="install a torch with CUDA, or say --device cpu.",
)
def large_images_on_a_cpu(case: Case) -> Found:
    """Views of more than 128 px without a GPU: days for what a GPU does in an hour."""
    size, device = case.plan.image.size, case.plan.hardware.device.type
    return f"views of {size} px on a CPU." if device == "cpu" and size > 128 else None
