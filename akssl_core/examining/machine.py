"""Rules about what a run needs of the machine, before it starts."""

from __future__ import annotations

from ..running.estimate import memory
from .base import Evidence, PlannedRun, before_run

GIB = 2**30
LARGE_IMAGE = 128  # px


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
    cause="processes that share a core wait for each other.",
    cure="use at most as many train.workers as there are cores left by the training processes.",
)
def more_workers_than_cores(run: PlannedRun) -> Evidence:
    """More worker processes than cores."""
    workers = (run.plan.spec.train.workers or 0) * run.devices
    return f"{workers} workers on {run.machine.cores} cores." if workers > run.machine.cores else None


@before_run(cause="these images are not read by worker processes.", cure="leave --workers out.")
def workers_without_use(run: PlannedRun) -> Evidence:
    """Worker processes for images that are read in memory or by threads."""
    workers, loading = run.plan.spec.train.workers, run.plan.images.loading
    idle = workers and loading != "process"
    return (
        f"{workers} workers, and images that are read {'directly' if loading == 'direct' else 'by threads'}."
        if idle
        else None
    )


@before_run(cause="each process needs a GPU, or a core, of its own.", cure="use at most as many --devices.")
def more_processes_than_devices(run: PlannedRun) -> Evidence:
    """More processes than GPUs, or than cores on a CPU."""
    cuda = run.plan.hardware.device.type == "cuda"
    most = run.machine.gpus if cuda else run.machine.cores
    return f"{run.devices} processes for {most} {'GPUs' if cuda else 'cores'}." if run.devices > most else None


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
        cause = (
            f"torch was built with CUDA {machine.cuda} and finds no GPU: there is none, its driver is missing or too "
        )
        cause, cure = f"{cause}old, or CUDA_VISIBLE_DEVICES hides it.", "see that nvidia-smi lists a GPU"
    return f"views of {size} px on a CPU.", cause, f"{cure}, or use a smaller --image-size."
