"""The beginning of a run, and going on with one that was stopped."""

from __future__ import annotations

import os
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import dist
from ..config.schema import is_harmless, leaves, user_path
from ..dist.slurm import join
from ..errors import AksslError, ConfigError, RunStopped, shown
from ..exporting.backbone_file import file_of, load_backbone
from ..plugins.manager import Plugins, installed
from ..plugins.table import environment
from ..reporting import render
from ..rundir.checkpoints import Checkpoint
from ..rundir.files import CannotWrite
from ..rundir.folder import RunDir, cannot_start, holds_run, refuse_folder
from ..rundir.schemas import Manifest
from ..settings import Given, TrainSpec, by_user
from ..training.checkpoint import accept, changed, refuse_misfit
from ..training.hardware import choose_hardware, kept_random_state
from .estimate import steps
from .layers import asked, check, collect, layer, set_aside, stand_ins
from .plan import GIVEN_WEIGHTS, Plan, make_plan
from .process import Training
from .result import Result, read_result

STORED = "config.yaml"  # the origin of what a resumed run's file says
LENGTH = {"train.epochs", "train.steps"}  # a finished run goes on for more of them
DATA = ("images", "channels", "sample")  # what the manifest knows of the data; the sample is a hash of 16 images


def run(
    method: str | Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    backbone: Any = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    out: str | Path | None = None,
    start: Any = None,
    seed: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    devices: int | None = None,
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: str | None = None,
    report: bool = True,
    plugins: Plugins | None = None,
    **sections: Any,
) -> Result:
    """Train a backbone with a method and give it back, with its scores and a folder that holds everything.

    Args:
        method: name of an installed method ("simsiam"), or a table with its name and settings.
        data: a source's name, a folder of images, a file that `akssl data prepare` wrote, a torch Dataset, a uint8
            array or tensor [N, H, W, C] or [N, C, H, W], or a pair (images, labels). Default: drawn shapes.
        backbone: a registered name, an nn.Module or a Backbone. Default: chosen for the image size.
        epochs: passes over the training images. Default: a small budget.
        batch_size: images a step, over all processes.
        image_size: side of the global views in pixels.
        out: the run folder. Default: a new one under `runs/`.
        start: weights to begin from: a run folder, a `.safetensors` file of ours or of another library, or the name
            of a backbone that has published weights. Default: random ones.
        seed: decides weights, batches and views.
        precision: number format of the forward pass; what is float32 is never TF32. "auto", "fp32", "bf16", "fp16".
        device: where to train; auto: on a GPU where there is one. Or "cpu", "cuda", "mps", "xpu".
        devices: processes; the command line starts them, torchrun those of a script.
        workers: processes that read a torch Dataset (null: none), or threads that decode files (one a core).
        options: the method's own settings.
        config: a YAML file or a table with any of these settings.
        overwrite: replace a run that `out` already holds.
        resume: "auto": go on with the run that `out` already holds, as `resume` does, if it is the one asked for.
        report: write report.html.
        plugins: another plugin manager than the process-wide one.
        **sections: any other setting by its section: `optimizer={"name": "lars", "lr": 0.3}`, `recipe="cifar"`.

    Raises:
        AksslError: anything in the arguments or the data that the caller can mend; no folder is left behind.
    """
    plugins = plugins or installed()
    flat = {
        "data": data, "backbone": backbone, "epochs": epochs, "batch_size": batch_size, "image_size": image_size,
        "start": start, "seed": seed, "precision": precision, "device": device, "devices": devices, "workers": workers,
        "options": options, **sections,
    }  # fmt: skip
    if resume is not None:
        _refuse_auto(resume, out, overwrite=overwrite)
    elif out is not None and dist.is_main():
        refuse_folder(user_path(out), overwrite=overwrite)
    join(os.environ)
    given = collect(method, config, flat, plugins)
    with _surroundings(check(layer(given, plugins), plugins).train):
        if resume is not None and out is not None and dist.any_rank(dist.is_main() and holds_run(user_path(out))):
            return _go_on_with_same(RunDir.open(user_path(out)), given, plugins, with_report=report)
        plan = make_plan(given, plugins)
        for text in plan.warnings:
            warnings.warn(text, UserWarning, stacklevel=2)
        path = user_path(out) if out is not None else Path(dist.from_main(str(_new_path(plan))))
        plan.take_threads()
        return _start(path, plan, plugins, overwrite=overwrite, with_report=report)


def resume(
    run_dir: str | Path,
    *,
    data: Any = None,
    backbone: Any = None,
    augmentation: Any = None,
    report: bool = True,
    plugins: Plugins | None = None,
    **settings: Any,
) -> Result:
    """Continue a run exactly where its last checkpoint stands; a finished run is only read, unless it is to train on.

    `data`, `backbone` and `augmentation` are needed again if the run was started with Python objects for them, and
    `data` where it was moved. Any other setting of `run` may be given; those that would change what the steps so far
    have meant are refused. More `epochs` are not: schedules then stretch to the new end.

    Raises:
        RunDirError: the folder holds no run, no checkpoint that can be read, or another process trains in it.
        ConfigError: settings differ in a way that a run cannot go on with; the message lists them.
    """
    plugins = plugins or installed()
    folder = RunDir.open(user_path(run_dir))
    settings, objects = set_aside({**settings, "data": data, "backbone": backbone, "augmentation": augmentation})
    if _ended(folder) and not settings.keys() - {"data"}:
        return _read(folder, backbone, plugins, with_report=report)
    join(os.environ)
    plugins.remember(folder.manifest.plugins if folder.begun else ())
    told = asked({**settings, **stand_ins(objects, plugins)}, plugins)
    return _resumed(folder, Given([("resume", told)], objects), plugins, with_report=report)


# -- going on -------------------------------------------------------------------------------------
def _refuse_auto(resume: str, out: str | Path | None, *, overwrite: bool) -> None:
    """Refuse what cannot be meant by going on."""
    if resume != "auto":
        raise ConfigError(f"resume: expected 'auto', got {shown(resume)}; a folder is for akssl_core.resume(folder).")
    if out is None:
        raise ConfigError("resume: 'auto' goes on in the folder that --out names, and none is named. Give --out DIR.")
    if overwrite:
        raise ConfigError("resume: 'auto' goes on with a run that --overwrite would replace. Leave one out.")


def _go_on_with_same(folder: RunDir, given: Given, plugins: Plugins, *, with_report: bool) -> Result:
    """Go on with the run of a folder, or read it where it has ended, if it is the one that was asked for.

    Raises:
        ConfigError: it is another one; the message lists what differs.
    """
    plugins.remember(folder.manifest.plugins if folder.begun else ())
    stored = folder.read_config()
    layers = layer(Given([(STORED, stored), *given.layers], given.objects), plugins)
    spec = check(layers, plugins)
    differing = changed(stored, spec)
    values, before = dict(leaves(stored)), [path for path, who in folder.origins.items() if by_user(who)]
    dropped = [path for path in before if layers.origin.get(path) == STORED and not is_harmless(path, spec)]
    other = [str(one) for one in differing if not is_harmless(one.path, spec)]
    other += [f"{path}: {shown(values.get(path))} was asked for, and is not now" for path in dropped]
    if other:
        raise ConfigError(
            f"out: {folder.path} holds another run than the one that is asked for: {'; '.join(other)}. Ask for the "
            f"same, or choose another folder."
        )
    if _ended(folder) and not LENGTH & {one.path for one in differing}:
        if differing and dist.is_main():
            text = f"{folder.path} has ended and is read; what it was not run with has no effect: "
            warnings.warn(text + "; ".join(map(str, differing)), UserWarning, stacklevel=3)
        return _read(folder, given.objects.get("backbone"), plugins, with_report=with_report)
    return _resumed(folder, given, plugins, with_report=with_report)


def _ended(folder: RunDir) -> bool:
    """Whether the run of a folder has come to its end."""
    return bool(folder.begun and folder.manifest.final and file_of(folder.path).exists())


def _read(folder: RunDir, backbone: nn.Module | None, plugins: Plugins, *, with_report: bool) -> Result:
    """The result of a run that has ended."""
    if with_report and dist.is_main() and not (folder.path / "report.html").exists():  # killed before it was written
        with suppress(CannotWrite):  # a run on a read-only disk can be read all the same
            folder.write_text("report.html", render(folder.path))
    return read_result(folder, load_backbone(folder.path, module=backbone, plugins=plugins))


def _resumed(folder: RunDir, told: Given, plugins: Plugins, *, with_report: bool) -> Result:
    """Go on from the last checkpoint of a folder, with the settings that it began with and those that are told."""
    stored = folder.read_config()
    layers = [(STORED, stored), *told.layers]
    train = check(layer(Given(layers, told.objects), plugins), plugins).train
    with _surroundings(train), ExitStack() as at_end:
        at_end.callback(folder.unlock)
        if dist.is_main():
            folder.lock()
        processes: dict[str, Any] = {"devices": dist.world()}
        if dict(leaves(stored)).get("train.devices", 1) != dist.world():
            processes["threads"] = None  # each has another share of the cores
        layers.insert(1, ("the launcher", {"train": processes}))
        checkpoint, problems = folder.latest()
        plan = make_plan(Given(layers, told.objects), plugins, anew=checkpoint is None)
        before = folder.origins
        origins = {path: before.get(path, who) if who == STORED else who for path, who in plan.provenance.items()}
        plan = replace(plan, provenance=origins)
        if checkpoint is None and folder.begun and GIVEN_WEIGHTS in folder.manifest.notes:
            _refuse_without_weights(folder, told)
        same_images, other = _compare_data(folder, plan)
        changes = accept(folder, plan.spec, checkpoint, steps(plan).total_steps, same_images=same_images)
        refuse_misfit(plan.method, checkpoint)
        notes = [*problems, *changes, *other]
        for note in notes if dist.is_main() else ():
            warnings.warn(note, UserWarning, stacklevel=3)
        plan.take_threads()
        _go_on(folder, plan, plugins, checkpoint, notes)
        return Training(folder, plan, plugins, checkpoint).run(with_report=with_report)


def _refuse_without_weights(folder: RunDir, told: Given) -> None:
    """Refuse to begin anew without the weights that a run has begun from."""
    if "backbone" not in told.objects:
        raise ConfigError(
            f"backbone: {folder.path} stopped before its first checkpoint, and {GIVEN_WEIGHTS}. "
            f"Pass it again: akssl_core.resume({str(folder.path)!r}, backbone=...)."
        )


# -- the parts of a run ---------------------------------------------------------------------------
def _compare_data(folder: RunDir, plan: Plan) -> tuple[bool, list[str]]:
    """Whether these images are known to be those which the run began with, and the differences in words."""
    before, now = folder.manifest.data.table() if folder.begun else {}, plan.fingerprint()
    found = [f"{name}: {before[name]} -> {now[name]}" for name in DATA if name in before and before[name] != now[name]]
    other = [f"resumed with other data than the run began with: {'; '.join(found)}"] if found else []
    return "sample" in before and not found, other


def _go_on(folder: RunDir, plan: Plan, plugins: Plugins, checkpoint: Checkpoint | None, notes: Sequence[str]) -> None:
    """Bring the files to where the checkpoint stands."""
    if not dist.is_main():
        return
    step = checkpoint.state.step if checkpoint else 0
    if not folder.begun:
        _begin(folder, plan, plugins)  # killed before the manifest was written
    folder.rewind(step)
    folder.write_config(plan.spec.table(), plan.provenance)
    notes = [*folder.manifest.notes, *notes]
    folder.update_manifest(
        Manifest(
            status="running", final=None, above=None, verdict=None, diagnosis=None, error=None, resumed_at=step,
            notes=notes, repeatable=not plan.has_objects,
        )
    )  # fmt: skip


def _start(path: Path, plan: Plan, plugins: Plugins, *, overwrite: bool, with_report: bool) -> Result:
    """A run from its first step in a new folder; bad input that shows only now leaves no folder behind."""
    plan.curves()  # what is wrong with them shows before there is a folder
    existed = path.exists()
    run_dir = RunDir.create(path, overwrite=overwrite) if dist.is_main() else RunDir(path)
    try:
        try:
            _begin(run_dir, plan, plugins)
        except CannotWrite as error:
            run_dir.clear()
            raise cannot_start(path, error) from error
        return Training(run_dir, plan, plugins, None).run(with_report=with_report)
    except AksslError:
        if dist.is_main() and not existed and not run_dir.history:
            run_dir.remove()
        raise
    finally:
        run_dir.unlock()


def _begin(run_dir: RunDir, plan: Plan, plugins: Plugins) -> None:
    """The files that exist from the start."""
    if not dist.is_main():
        return
    spec = plan.spec
    run_dir.write_config(spec.table(), plan.provenance)
    run_dir.write_text("metrics.jsonl", "")
    manifest = Manifest(
        status="running",
        method=spec.method.name,
        headline=spec.method_class.headline,
        trained_with_labels=spec.method_class.uses_labels,
        seed=spec.seed,
        image=asdict(plan.image),
        data=plan.fingerprint(),
        notes=plan.notes,
        repeatable=not plan.has_objects,
        hardware=plan.hardware.record(),
        curves=plan.curves(),
        **environment(plugins),
    )
    run_dir.update_manifest(manifest)


def _new_path(plan: Plan) -> Path:
    """A fresh folder name: method, data, time and four random digits."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    names = (re.sub(r"[^\w.-]+", "-", name) for name in (plan.spec.method.name, plan.spec.data.name))
    return Path("runs") / f"{'-'.join(names)}-{stamp}-{secrets.token_hex(2)}"


@contextmanager
def _surroundings(train: TrainSpec) -> Iterator[None]:
    """The process group that a launcher describes, and the caller's random state and threads kept as they were.

    Raises:
        RunStopped: the processes do not meet.
    """
    threads = torch.get_num_threads()
    device = choose_hardware(train).device
    try:
        joined = dist.start(device)
    except (RuntimeError, ValueError) as error:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise RunStopped(
            f"the {dist.expected()} processes of this run did not meet at {place}. Can all of them reach that machine "
            f"(MASTER_ADDR, GLOO_SOCKET_IFNAME), and is its port free (MASTER_PORT)? {str(error).partition(chr(10))[0]}"
        ) from error
    try:
        with kept_random_state(device):
            yield
    finally:
        torch.set_num_threads(threads)
        if joined:
            dist.stop()
