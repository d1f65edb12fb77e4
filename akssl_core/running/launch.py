"""A run from its beginning, and one that was begun before."""

from __future__ import annotations

import os
import re
import secrets
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import dist
from ..config.schema import leaves, user_path
from ..dist.slurm import join
from ..errors import AksslError, ConfigError, shown
from ..plugins.manager import Plugins, installed
from ..rundir.files import CannotWrite
from ..rundir.folder import RunDir, cannot_start, holds_run, refuse_folder
from ..settings import Given
from .estimate import leave_length_open, within
from .going_on import go_on, go_on_with_same, is_only_read, read
from .layers import asked, check, collect, layer, set_aside, stand_ins
from .plan import Plan, make_plan
from .process import Training, surroundings, write_beginning
from .result import Result


def run(
    method: str | Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    labels: str | Path | None = None,
    test_data: str | Path | None = None,
    backbone: Any = None,
    epochs: int | None = None,
    budget: str | float | None = None,
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
        data: a source's name; a folder of images, a table of image files, a .zip or .tar, or a file that `akssl data
            prepare` wrote; a Dataset of torch or Hugging Face; a uint8 array or tensor [N, H, W, C] or [N, C, H, W]; a
            list of paths or images; a frame of paths; or a pair (images, labels). Default: drawn shapes.
        labels: a table that gives each image file its label.
        test_data: labelled test images, as a folder, a table or an archive; then none of `data` is held out.
        backbone: a registered name, an nn.Module or a Backbone. Default: chosen for the image size.
        epochs: passes over the training images. Default: a small budget.
        budget: instead of epochs, the time of all training steps: "90s", "10m", "2h" or seconds. How many fit is found
            by timing a few, and recorded as `train.steps`; a run that goes on keeps it.
        batch_size: images a step, over all processes.
        image_size: side in pixels of the images that the backbone is for, and of global views.
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
        "data": data, "labels": labels, "test_data": test_data, "backbone": backbone, "epochs": epochs,
        "batch_size": batch_size, "image_size": image_size,
        "start": start, "seed": seed, "precision": precision, "device": device, "devices": devices, "workers": workers,
        "options": options, **sections,
    }  # fmt: skip
    given = collect(method, config, flat, plugins)
    return run_given(given, plugins, out=out, budget=budget, overwrite=overwrite, resume=resume, report=report)


def run_given(
    given: Given,
    plugins: Plugins,
    *,
    out: str | Path | None,
    overwrite: bool,
    resume: str | None,
    report: bool,
    budget: str | float | None = None,
) -> Result:
    """A run of settings in layers, as `run` begins it."""
    if budget is not None:
        given = leave_length_open(budget, given)
    if resume is not None:
        _refuse_auto(resume, out, overwrite=overwrite)
    elif out is not None and dist.is_main():
        refuse_folder(user_path(out), overwrite=overwrite)
    join(os.environ)
    with surroundings(check(layer(given, plugins), plugins).train):
        if resume is not None and out is not None and dist.any_rank(dist.is_main() and holds_run(user_path(out))):
            return go_on_with_same(RunDir.open(user_path(out)), given, plugins, with_report=report)
        plan = make_plan(given if budget is None else within(budget, given, plugins), plugins)
        for text in plan.warnings:
            warnings.warn(text, UserWarning, stacklevel=2)
        fresh = new_path(plan.spec.method.name, plan.spec.data.name)
        path = user_path(out) if out is not None else Path(dist.from_main(str(fresh)))
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
    if is_only_read(folder, settings):
        for name in settings:
            warnings.warn(f"{folder.path} has ended and is read: {name} has no effect", UserWarning, stacklevel=2)
        return read(folder, backbone, plugins, with_report=report)
    join(os.environ)
    plugins.remember(folder.manifest.plugins if folder.begun else ())
    told = asked({**settings, **stand_ins(objects, plugins)}, plugins)
    return go_on(folder, Given([("resume", told)], objects), plugins, with_report=report)


def _refuse_auto(resume: str, out: str | Path | None, *, overwrite: bool) -> None:
    """Refuse what cannot be meant by going on."""
    if resume != "auto":
        raise ConfigError(f"resume: expected 'auto', got {shown(resume)}; a folder is for akssl_core.resume(folder).")
    if out is None:
        raise ConfigError("resume: 'auto' goes on in the folder that --out names, and none is named. Give --out DIR.")
    if overwrite:
        raise ConfigError("resume: 'auto' goes on with a run that --overwrite would replace. Leave one out.")


def _start(path: Path, plan: Plan, plugins: Plugins, *, overwrite: bool, with_report: bool) -> Result:
    """A run from its first step in a new folder; bad input that shows only now leaves no folder behind."""
    plan.curves()  # what is wrong with them shows before there is a folder
    if overwrite:
        _refuse_to_empty(path, plan)
    existed = path.exists()
    run_dir = RunDir.create(path, overwrite=overwrite) if dist.is_main() else RunDir(path)
    try:
        try:
            write_beginning(run_dir, plan, plugins)
        except CannotWrite as error:
            run_dir.bring_back()
            raise cannot_start(path, error) from error
        return Training(run_dir, plan, plugins, None).run(with_report=with_report)
    except AksslError:
        if dist.is_main() and not run_dir.history and not run_dir.checkpoints():
            if not existed:
                run_dir.remove()
            elif run_dir.replaces:
                run_dir.bring_back()
        raise
    finally:
        run_dir.unlock()


def _refuse_to_empty(path: Path, plan: Plan) -> None:
    """Refuse to replace a run that the new one is to begin or to learn from."""
    for name, value in leaves(plan.spec.table()):
        if not isinstance(value, str) or name.startswith("data.") or not os.path.isabs(value):
            continue
        real = Path(value).resolve()
        if real.exists() and path.resolve() in (real, *real.parents):
            raise ConfigError(
                f"{name}: {shown(value)} is in the folder that --overwrite empties. Choose another --out."
            )


def new_path(*names: str) -> Path:
    """A fresh folder under `runs/`: these names, the time and four random digits."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    plain = (re.sub(r"[^\w.-]+", "-", name) for name in names)
    return Path("runs") / f"{'-'.join(plain)}-{stamp}-{secrets.token_hex(2)}"
