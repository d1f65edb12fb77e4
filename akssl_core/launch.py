"""A run from start to end: plan, train, probe, export, report; and going on with one that was stopped."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from . import dist
from .backbone import Backbone
from .callbacks import Callback, Checkpoints, EvaluateSpec, Logger, Observers, Probe, ProbeData, Recorder
from .data import Preprocess
from .engine import Engine
from .errors import AksslError, RunDirError
from .evaluation import sample
from .export import export_backbone, load_backbone
from .listing import environment
from .optim import load_state_by_name
from .plan import Plan, make_plan
from .plugins import Plugins, installed
from .report import render
from .resolve import Given, collect
from .rundir import Checkpoint, RunDir, refuse_used
from .samples import sample_tensors


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    `backbone` maps normalised float images (N, C, H, W) to features (N, D), in eval mode on the CPU;
    `preprocess` makes such images; `metrics` are the final numbers; `history` is what metrics.jsonl holds;
    `verdict` is "healthy", "dimensional collapse" or "collapsed". In all but the main process of several, metrics,
    history and verdict are empty.
    """

    backbone: Backbone
    preprocess: Preprocess
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    run_dir: Path
    verdict: str


def run(
    method: str | Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    backbone: Any = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    devices: int | None = None,
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    overwrite: bool = False,
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
        epochs: passes over the data. Default: a small budget.
        batch_size: images a step, over all processes.
        image_size: side of the global views in pixels.
        out: the run folder. Default: a new one under `runs/`.
        seed: decides weights, batches and views.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu" or "cuda".
        devices: number of processes (started by torchrun).
        workers: processes that read a torch Dataset.
        options: the method's own settings.
        config: a YAML file or a table with any of these settings.
        overwrite: replace a run that `out` already holds.
        report: write report.html.
        plugins: another plugin manager than the process-wide one.
        **sections: any other setting by its section: `optimizer={"name": "lars", "lr": 0.3}`, `recipe="cifar"`.

    Raises:
        AksslError: anything in the arguments or the data that the caller can mend; no folder is left behind.
    """
    plugins = plugins or installed()
    flat = {
        "data": data, "backbone": backbone, "epochs": epochs, "batch_size": batch_size, "image_size": image_size,
        "seed": seed, "precision": precision, "device": device, "devices": devices, "workers": workers,
        "options": options, **sections,
    }  # fmt: skip
    if out is not None:
        refuse_used(Path(out), overwrite=overwrite)
    given = collect(method, config, flat, plugins)
    with _surroundings(device):
        plan = make_plan(given, plugins)
        _warn(plan)
        path = Path(out) if out is not None else _new_path(plan)
        return _start(path, plan, plugins, overwrite=overwrite, with_report=report)


def resume(
    run_dir: str | Path,
    *,
    data: Any = None,
    backbone: Any = None,
    augmentation: Any = None,
    report: bool = True,
    plugins: Plugins | None = None,
) -> Result:
    """Continue a run exactly where its last checkpoint stands; a finished run is only read.

    `data`, `backbone` and `augmentation` are needed again if the run was started with Python objects for them.

    Raises:
        RunDirError: the folder holds no run, or no checkpoint that can be read.
    """
    plugins = plugins or installed()
    folder = RunDir.open(Path(run_dir))
    if "final" in folder.manifest:
        return _read(folder, load_backbone(folder.path, module=backbone, plugins=plugins))
    objects = {"data": data, "backbone": backbone, "augmentation": augmentation}
    named = {key: value for key, value in objects.items() if value is not None}
    settings = folder.read_config()
    given = Given([("config.yaml", settings)], named)
    with _surroundings(settings["train"]["device"]):
        plan = make_plan(given, plugins)
        checkpoint, problems = folder.latest()
        if checkpoint is not None and checkpoint.state["spec_hash"] != plan.spec_hash:
            raise RunDirError(f"{folder.path}: config.yaml is not the one its checkpoints were made with.")
        step = checkpoint.state["step"] if checkpoint else 0
        if dist.is_main():
            folder.rewind(step)
            folder.update_manifest(status="running", resumed_at=step, notes=[*folder.manifest["notes"], *problems])
        return _train(folder, plan, plugins, checkpoint, with_report=report)


# -- the parts of a run ---------------------------------------------------------------------------
def _warn(plan: Plan) -> None:
    """Tell the caller of `run` what goes badly together."""
    for text in plan.warnings:
        warnings.warn(text, UserWarning, stacklevel=3)


def _start(path: Path, plan: Plan, plugins: Plugins, *, overwrite: bool, with_report: bool) -> Result:
    """A run from its first step in a new folder; bad input that shows only now leaves no folder behind."""
    existed = path.exists()
    run_dir = RunDir.create(path, overwrite=overwrite) if dist.is_main() else RunDir(path)
    try:
        _begin(run_dir, plan, plugins)
        return _train(run_dir, plan, plugins, None, with_report=with_report)
    except AksslError:
        if not existed and not run_dir.history:
            run_dir.remove()
        raise


def _begin(run_dir: RunDir, plan: Plan, plugins: Plugins) -> None:
    """The files that exist from the start."""
    if not dist.is_main():
        return
    spec, image = plan.spec, plan.image
    run_dir.write_config(spec.table(), plan.provenance)
    run_dir.write_text("metrics.jsonl", "")
    run_dir.update_manifest(
        status="running",
        method=spec.method.name,
        seed=spec.seed,
        image={"size": image.size, "channels": image.channels, "mean": image.mean, "std": image.std},
        data=plan.fingerprint(),
        notes=plan.notes,
        repeatable=not plan.has_objects,
        hardware=plan.hardware.record(),
        **environment(plugins),
    )


def _train(
    run_dir: RunDir, plan: Plan, plugins: Plugins, checkpoint: Checkpoint | None, *, with_report: bool
) -> Result:
    """Train from the checkpoint, or from the start, to the end; the manifest says how it went."""
    metrics: dict[str, float] | None = None
    callbacks, observers = _chosen(plan)
    if not dist.is_main():
        return _follow(run_dir, plan, checkpoint, callbacks)
    plugins.tell("akssl_run_started", config=plan.spec.table(), run_dir=run_dir.path)
    observers.tell("on_run", plan.spec.table(), run_dir.path)
    try:
        metrics, verdict = _fit(run_dir, plan, checkpoint, callbacks, observers)
        status = "collapsed" if verdict == "collapsed" else "finished"
        run_dir.update_manifest(status=status, final=metrics, verdict=verdict)
        if with_report:
            run_dir.write_text("report.html", render(run_dir.path))
    except BaseException as error:
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        run_dir.update_manifest(status=status, error=str(error) or type(error).__name__)
        raise
    finally:
        observers.tell("on_finish", metrics)
        plugins.tell("akssl_run_finished", metrics=metrics, run_dir=run_dir.path)
    return _read(run_dir, _product(plan))


def _follow(run_dir: RunDir, plan: Plan, checkpoint: Checkpoint | None, callbacks: Sequence[Callback]) -> Result:
    """Train beside the main process, which alone probes, writes and speaks; the result holds the backbone alone."""
    engine = plan.engine(callbacks)
    if checkpoint is not None:
        _restore(engine, checkpoint)
    engine.fit()
    return Result(_product(plan), plan.preprocess, {}, [], run_dir.path, "")


def _read(run_dir: RunDir, backbone: Backbone) -> Result:
    """The result of a run that has ended."""
    manifest = run_dir.manifest
    assert backbone.preprocess is not None
    return Result(backbone, backbone.preprocess, manifest["final"], run_dir.history, run_dir.path, manifest["verdict"])


def _fit(
    run_dir: RunDir, plan: Plan, checkpoint: Checkpoint | None, chosen: Sequence[Callback], observers: Observers
) -> tuple[dict[str, float], str]:
    """Train, then score and export the encoder; the final numbers and the verdict on collapse."""
    started = time.perf_counter()
    evaluate = plan.spec.evaluate
    engine = plan.engine([*chosen, *_callbacks(run_dir, plan, observers)])
    probe = _probe_data(plan, evaluate.queries, evaluate.bank)
    if checkpoint is None:
        run_dir.update_manifest(baselines=_baselines(probe, engine, evaluate))
    else:
        _restore(engine, checkpoint)
    engine.fit()
    scores, verdict = probe.encoder_scores(engine, evaluate)
    encoder = _product(plan)
    export_backbone(run_dir, plan.spec.method.name, plan.backbone_table(), encoder, plan.preprocess)
    run_dir.write_tensors("samples.safetensors", sample_tensors(plan, encoder), {})
    run_dir.write_unreadable(plan.images.unreadable)
    seconds = round(time.perf_counter() - started, 1)
    loss = run_dir.history[-1]["loss"]
    return {"loss": loss, **scores, **run_dir.manifest["baselines"], "seconds": seconds}, verdict


def _baselines(probe: ProbeData, engine: Engine, evaluate: EvaluateSpec) -> dict[str, float]:
    """The k-NN accuracy that a trained encoder must beat: raw pixels, and itself before the first step."""
    raw, (untrained, _) = probe.pixel_scores(evaluate), probe.encoder_scores(engine, evaluate)
    named = {"knn_raw_pixels": raw.get("knn_top1"), "knn_random_init": untrained.get("knn_top1")}
    return {name: value for name, value in named.items() if value is not None}


def _chosen(plan: Plan) -> tuple[list[Callback], Observers]:
    """What the user has listed: callbacks that see the engine, and loggers that see rows."""
    built = [ref.build() for ref in plan.spec.callbacks]
    loggers = [one for one in built if isinstance(one, Logger)]
    return [one for one in built if isinstance(one, Callback)], Observers(loggers)


def _callbacks(run_dir: RunDir, plan: Plan, observers: Observers) -> list[Callback]:
    """Probe, then write the row, then save: so that a checkpoint never precedes its row."""
    train, evaluate = plan.spec.train, plan.spec.evaluate
    assert train.log_every is not None
    assert train.checkpoint_every is not None
    assert evaluate.every is not None
    recorder = Recorder(run_dir, train.log_every, train.checkpoint_every, observers)
    online = _probe_data(plan, evaluate.online_queries, evaluate.online_bank)
    saver = Checkpoints(run_dir, train.checkpoint_every, train.keep, plan.spec_hash)
    return [Probe(online, evaluate, evaluate.every, recorder), recorder, saver]


def _probe_data(plan: Plan, queries: int, bank: int) -> ProbeData:
    """Labelled bank and queries where the source has them, else a sample of the training images."""
    pair = plan.source.probe()
    if pair is None:
        return ProbeData(sample(plan.images, queries), None, plan.preprocess)
    return ProbeData(sample(pair[1], queries), sample(pair[0], bank), plan.preprocess)


def _restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put an engine where a checkpoint was taken."""
    engine.method.load_state_dict(checkpoint.model)
    load_state_by_name(engine.optimizer, checkpoint.optimizer)
    engine.scaler.load_state_dict(checkpoint.state["scaler"])
    engine.go_to(checkpoint.state["step"])


def _product(plan: Plan) -> Backbone:
    """The trained network alone, on the CPU, in eval mode and the plain memory layout."""
    encoder = plan.method.encoder
    encoder.to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    encoder.preprocess = plan.preprocess
    return encoder.eval()


def _new_path(plan: Plan) -> Path:
    """A fresh folder name: method, data, time and four random digits."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{plan.spec.method.name}-{plan.spec.data.name}-{stamp}-{secrets.token_hex(2)}"


@contextmanager
def _surroundings(device: str | None) -> Iterator[None]:
    """The process group of torchrun, and the caller's random state kept as it was."""
    dist.start("cuda" if torch.cuda.is_available() and device != "cpu" else "cpu")
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        dist.stop()
