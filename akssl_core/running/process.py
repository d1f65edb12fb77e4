"""One process's part in a run: train, probe, export, report; the main process writes, the others follow."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .. import dist
from ..backbone import Backbone
from ..errors import RunDirError
from ..exporting.backbone_file import FILE, START, export_backbone
from ..method import Landmark
from ..metrics.diagnosis import BASELINES, Diagnosis, diagnose
from ..metrics.features import measure_statistics, sample
from ..metrics.health import of_views
from ..metrics.interval import Interval, interval
from ..metrics.nearest import percent
from ..plugins.manager import Plugins
from ..reporting import render
from ..rundir.checkpoints import Checkpoint
from ..rundir.folder import ANSWERS, RunDir, read_tensors
from ..rundir.schemas import Difference, Manifest
from ..training.callback import Callback, Logger, Observers
from ..training.checkpoint import Checkpoints, restore
from ..training.engine import Engine
from ..training.faults import explain_faults
from ..training.recorder import Recorder, Signals
from ..training.rows import Rows
from ..training.watch import Collapsed, Probe, Scored, Vitals, Watch
from .artefacts import of_run
from .plan import Plan
from .result import Result, read_result
from .samples import sample_tensors, view_features


@dataclass
class Training:
    """The part of this process in a run, from a checkpoint or from the start to the end."""

    run_dir: RunDir
    plan: Plan
    plugins: Plugins
    checkpoint: Checkpoint | None

    def __post_init__(self) -> None:
        self.signals = Signals()
        self.checkpoints = Checkpoints(self.run_dir, self.plan.spec.train.keep, self.plan.spec.table())
        self.product: Backbone | None = None
        self.collapsed = False  # and stopped for it
        refs = self.plan.spec.callbacks
        self.chosen: list[Callback] = [ref.build() for ref in refs if not issubclass(ref.component, Logger)]
        self.observers = Observers.built([ref for ref in refs if issubclass(ref.component, Logger)])

    def run(self, *, with_report: bool) -> Result:
        """Train from the checkpoint, or from the start, to the end."""
        return self.lead(with_report=with_report) if dist.is_main() else self.follow()

    def lead(self, *, with_report: bool) -> Result:
        """Train in the main process; the manifest says how it went."""
        run_dir, table = self.run_dir, self.plan.spec.table()
        metrics: dict[str, float] | None = None
        self.plugins.tell("akssl_run_started", config=table, run_dir=run_dir.path)
        self.observers.tell("on_run", table, run_dir.path)
        try:
            metrics, found = self._fit()
            status = "collapsed" if found.verdict == "collapsed" else "finished"
            ending = Manifest(status=status, final=metrics, verdict=found.verdict, diagnosis=asdict(found))
            run_dir.update_manifest(ending)
            if with_report:
                run_dir.write_text("report.html", render(run_dir.path))
        except BaseException as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # the disk may be what failed
                run_dir.update_manifest(Manifest(status=status, error=str(error) or type(error).__name__))
            raise
        finally:
            self.observers.tell("on_finish", metrics)
            self.plugins.tell("akssl_run_finished", metrics=metrics, run_dir=run_dir.path)
        assert self.product is not None
        return read_result(run_dir, self.product)

    def follow(self) -> Result:
        """Train and probe beside the main process, which alone writes and speaks; the result is the backbone alone."""
        evaluate, engine = self.plan.spec.evaluate, self._engine()
        with explain_faults(engine):
            encoder, _ = self._trained(_probe(self.plan, evaluate.queries, evaluate.bank), engine)
        return Result(_product(encoder, self.plan).cpu(), self.plan.preprocess, {}, [], self.run_dir.path, None)

    def _fit(self) -> tuple[dict[str, float], Diagnosis]:
        """Train, then score and export the encoder; the final numbers, and whether it has learned or collapsed."""
        run_dir, plan, evaluate = self.run_dir, self.plan, self.plan.spec.evaluate
        started = time.perf_counter() - sum(row.get("seconds", 0.0) for row in run_dir.history)  # before a resume
        probe = _probe(plan, evaluate.queries, evaluate.bank)
        engine = self._engine()
        with explain_faults(engine):
            trained, found = self._trained(probe, engine)
            self.product = encoder = _product(trained, plan)
            health = of_views(view_features(plan, encoder, engine.device))
            metrics = {
                "loss": run_dir.history[-1]["loss"],
                **found.numbers,
                **health.numbers,
                **run_dir.manifest.baselines,
            }
            own = of_run(plan, engine, [*metrics, "seconds"])
            if missing := {**found.missing, **health.missing}:
                run_dir.update_manifest(Manifest(not_measured=missing))
            self._export(encoder, FILE)
            pictures = sample_tensors(plan, encoder, engine.device) | own.samples()
            run_dir.write_tensors("samples.safetensors", pictures, {})
            if own.tensors:
                run_dir.write_tensors("method.safetensors", own.tensors, {"method": plan.spec.method.name})
            encoder.cpu()
        run_dir.write_unreadable(plan.images.unreadable)
        seconds = round(time.perf_counter() - started, 1)
        metrics |= {**own.numbers, "seconds": seconds}
        above = _above(run_dir, found.right)
        if above:
            run_dir.update_manifest(Manifest(above={name: Difference(**asdict(by)) for name, by in above.items()}))
        return metrics, diagnose(
            run_dir.history,
            self._landmarks(),
            scores=metrics,
            features=found.verdict,
            stopped=self.collapsed,
            paired=above,
            headline=plan.spec.method_class.headline,
        )

    def _landmarks(self) -> Sequence[Landmark]:
        return self.plan.spec.method_class.landmarks(self.plan.spec.method.config, self.plan.facts)

    def _engine(self) -> Engine:
        """The engine where the checkpoint stands, with what happens around it."""
        recorder = self._recorder()
        self.engine = self.plan.engine([recorder])
        if self.checkpoint is not None:
            restore(self.engine, self.checkpoint)
            recorder.restore(self.checkpoint.state.callbacks)
        return self.engine

    def _trained(self, probe: Probe, engine: Engine) -> tuple[Backbone, Scored]:
        """The encoder after training, where it stands, and what the probe says of it; all processes take part."""
        if self.checkpoint is None:
            self._keep_beginning(probe, engine)
            if self._measure(engine.method.backbone):
                engine.kept.catch_up()
        self._train()
        encoder = engine.encoder()
        self._measure(encoder)
        return encoder, probe.encoder_scores(encoder, engine.device)

    def _keep_beginning(self, probe: Probe, engine: Engine) -> None:
        """Before the first step: what the trained encoder must beat, and the weights that the run begins from."""
        beginning, device = engine.encoder(), engine.device  # asked for in all processes
        others = {"random_init": beginning}
        if self.plan.random is not None:  # the run begins from weights
            others = {"random_init": self.plan.random.to(device), "start": beginning}
            self.plan.random = None
        right = {"raw_pixels": probe.pixels_right(device)}
        right |= {name: probe.encoder_scores(encoder, device).right for name, encoder in others.items()}
        if dist.is_main():
            known = {name: answers for name, answers in right.items() if answers is not None}
            if known:
                self.run_dir.write_tensors(ANSWERS, known, {})
            self.run_dir.update_manifest(Manifest(baselines={f"knn_{name}": percent(of) for name, of in known.items()}))
            if "start" in others:
                self._export(beginning, START)

    def _export(self, encoder: Backbone, name: str) -> None:
        spec = self.plan.spec
        export_backbone(self.run_dir, spec.method.name, spec.table()["backbone"], encoder, self.plan.preprocess, name)

    def _measure(self, encoder: Backbone) -> int:
        """Measure the statistics of an encoder's batch norms on the images of the run, where it was asked to."""
        plan, start = self.plan, self.plan.spec.start
        if start is None or start.statistics == "keep":
            return 0
        size, device = plan.spec.evaluate.batch_size, self.engine.device
        return measure_statistics(encoder, plan.images, plan.preprocess, batch_size=size, device=device)

    def _train(self) -> None:
        """Train to the end, or to where the run has collapsed if it is to stop there."""
        try:
            with self.checkpoints, self.signals:
                self.engine.fit()
        except Collapsed as reason:
            self.collapsed = True
            if dist.is_main():
                warnings.warn(str(reason), UserWarning, stacklevel=2)

    def _recorder(self) -> Recorder:
        train, evaluate = self.plan.spec.train, self.plan.spec.evaluate
        assert train.log_every is not None
        return Recorder(
            callbacks=self.chosen,
            probe=_probe(self.plan, evaluate.online_queries, evaluate.online_bank),
            vitals=Vitals(),
            rows=Rows(self.run_dir, self.observers),
            watch=Watch(self.run_dir, self._landmarks(), stops=train.stop_on_collapse),
            checkpoints=self.checkpoints,
            signals=self.signals,
            log_every=train.log_every,
            checkpoint_every=train.checkpoint_every,
        )


def _above(run_dir: RunDir, right: Tensor | None) -> dict[str, Interval]:
    """How many points k-NN is above each baseline, paired by test image; nothing where either's answers are unknown."""
    known: dict[str, Tensor] = {}
    if right is not None:
        with suppress(RunDirError):  # of a run that an earlier version began
            known = read_tensors(run_dir.path / ANSWERS)[0]
    return {
        name: interval(100 * (right.double() - known[name].double())[None], least=-100, most=100)
        for name in BASELINES
        if right is not None and name in known and known[name].shape == right.shape
    }


def _probe(plan: Plan, queries: int, bank: int) -> Probe:
    """Labelled bank and queries where the source has them, else a sample of the training images."""
    pair, spec = plan.source.probe(), plan.spec.evaluate
    if pair is None:
        return Probe(sample(plan.images, queries), None, plan.preprocess, spec)
    return Probe(sample(pair[1], queries), sample(pair[0], bank), plan.preprocess, spec)


def _product(encoder: Backbone, plan: Plan) -> Backbone:
    """The trained network alone, in eval mode and the plain memory layout."""
    encoder.to(memory_format=torch.contiguous_format)
    encoder.preprocess = plan.preprocess
    return encoder.eval()
