"""Going on with a run: the same call again, a run that was stopped, one that has ended."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from torch import nn

from .. import dist
from ..config.schema import absolute_path, is_harmless, leaves
from ..errors import ConfigError, shown
from ..exporting.backbone_file import file_of, load_backbone
from ..plugins.manager import Plugins
from ..reporting import render
from ..rundir.checkpoints import Checkpoint
from ..rundir.files import CannotWrite
from ..rundir.folder import RunDir
from ..rundir.schemas import Manifest
from ..settings import BUDGET, LENGTH, Given, by_user
from ..training.checkpoint import accept, changed, refuse_misfit
from .estimate import steps
from .layers import check, layer
from .plan import GIVEN_WEIGHTS, Plan, make_plan
from .process import Training, surroundings, write_beginning
from .result import Result, read_result

STORED = "config.yaml"  # the origin of what a resumed run's file says
FURTHER = {f"train.{name}" for name in LENGTH}  # a finished run goes on for more of them
DATA = ("images", "channels", "sample")  # what the manifest knows of the data; the sample is a hash of 16 images


def go_on_with_same(folder: RunDir, given: Given, plugins: Plugins, *, with_report: bool) -> Result:
    """Go on with the run of a folder, or read it where it has ended, if it is the one that was asked for.

    Raises:
        ConfigError: it is another one; the message lists what differs.
    """
    plugins.remember(folder.manifest.plugins if folder.begun else ())
    stored = folder.read_config()
    given = _with_start_of(stored, given)
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
    if has_ended(folder) and not FURTHER & {one.path for one in differing}:
        _tell_useless(folder, differing)
        return read(folder, given.objects.get("backbone"), plugins, with_report=with_report)
    return go_on(folder, given, plugins, with_report=with_report)


def _with_start_of(stored: Mapping[str, Any], given: Given) -> Given:
    """The request in which a start is written as the run has stored it, where it is the same path: it may be gone."""
    kept = (stored.get("start") or {}).get("source")

    def same(table: Mapping[str, Any]) -> Mapping[str, Any]:
        source = (table.get("start") or {}).get("source")
        there = isinstance(source, str) and source != "" and str(absolute_path(source)) == kept
        return {**table, "start": {**table["start"], "source": kept}} if there else table

    return Given([(who, same(table)) for who, table in given.layers], given.objects)


def _tell_useless(folder: RunDir, differing: Sequence[object]) -> None:
    """Warn of settings that a run which has ended does not have, and will not."""
    if differing and dist.is_main():
        text = f"{folder.path} has ended and is read; what it was not run with has no effect: "
        warnings.warn(text + "; ".join(map(str, differing)), UserWarning, stacklevel=4)


def has_ended(folder: RunDir) -> bool:
    """Whether the run of a folder has come to its end."""
    return bool(folder.begun and folder.manifest.final and file_of(folder.path).exists())


def is_only_read(folder: RunDir, told: Collection[str]) -> bool:
    """Whether a request to go on, with settings of these names, trains nothing: the run has ended."""
    return has_ended(folder) and not set(told) - {"data"}


def read(folder: RunDir, backbone: nn.Module | None, plugins: Plugins, *, with_report: bool) -> Result:
    """The result of a run that has ended."""
    if with_report and dist.is_main() and not (folder.path / "report.html").exists():  # killed before it was written
        with suppress(CannotWrite):  # a run on a read-only disk can be read all the same
            folder.write_text("report.html", render(folder.path))
    return read_result(folder, load_backbone(folder.path, module=backbone, plugins=plugins))


def go_on(folder: RunDir, told: Given, plugins: Plugins, *, with_report: bool) -> Result:
    """Go on from the last checkpoint of a folder, with the settings that it began with and those that are told."""
    stored = _without_budget(folder, told)
    layers = [(STORED, stored), *told.layers]
    train = check(layer(Given(layers, told.objects), plugins), plugins).train
    with surroundings(train), ExitStack() as at_end:
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
        differing = changed(stored, plan.spec)
        if has_ended(folder) and not FURTHER & {one.path for one in differing}:
            _tell_useless(folder, differing)
            return read(folder, told.objects.get("backbone"), plugins, with_report=with_report)
        notes = [*problems, *changes, *other]
        for note in notes if dist.is_main() else ():
            warnings.warn(note, UserWarning, stacklevel=3)
        plan.take_threads()
        _rewind(folder, plan, plugins, checkpoint, notes)
        return Training(folder, plan, plugins, checkpoint).run(with_report=with_report)


def _without_budget(folder: RunDir, told: Given) -> dict[str, Any]:
    """The stored settings; steps that a budget has chosen give way to epochs that are told."""
    stored, length = folder.read_config(), {name for _, table in told.layers for name in table.get("train", {})}
    by_budget = folder.origins.get("train.steps", "").startswith(BUDGET)
    if by_budget and "epochs" in length and "steps" not in length:
        stored["train"] = {**stored["train"], "steps": None}
    return stored


def _refuse_without_weights(folder: RunDir, told: Given) -> None:
    """Refuse to begin anew without the weights that a run has begun from."""
    if "backbone" not in told.objects:
        raise ConfigError(
            f"backbone: {folder.path} stopped before its first checkpoint, and {GIVEN_WEIGHTS}. "
            f"Pass it again: akssl_core.resume({str(folder.path)!r}, backbone=...)."
        )


def _compare_data(folder: RunDir, plan: Plan) -> tuple[bool, list[str]]:
    """Whether these images are known to be those which the run began with, and the differences in words."""
    before, now = folder.manifest.data.table() if folder.begun else {}, plan.fingerprint()
    found = [f"{name}: {before[name]} -> {now[name]}" for name in DATA if name in before and before[name] != now[name]]
    other = [f"resumed with other data than the run began with: {'; '.join(found)}"] if found else []
    return "sample" in before and not found, other


def _rewind(folder: RunDir, plan: Plan, plugins: Plugins, checkpoint: Checkpoint | None, notes: Sequence[str]) -> None:
    """Bring the files to where the checkpoint stands."""
    if not dist.is_main():
        return
    step = checkpoint.state.step if checkpoint else 0
    if not folder.begun:
        write_beginning(folder, plan, plugins)  # killed before the manifest was written
    folder.rewind(step)
    folder.write_config(plan.spec.table(), plan.provenance)
    notes = [*folder.manifest.notes, *notes]
    folder.update_manifest(
        Manifest(
            status="running", final=None, above=None, verdict=None, diagnosis=None, error=None, resumed_at=step,
            notes=notes, repeatable=not plan.has_objects,
        )
    )  # fmt: skip
