"""One process's part in a run: train, probe, export, report; the main process writes, the others follow."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .. import dist
from ..backbone import Backbone
from ..data import ImageSet
from ..errors import RunDirError, RunStopped
from ..exporting.backbone_file import FILE, START, export_backbone, learned_from_of
from ..method import Landmark
from ..metrics.diagnosis import BASELINES, Diagnosis, diagnose
from ..metrics.features import measure_statistics, sample
from ..metrics.health import of_views
from ..metrics.interval import Interval, interval
from ..metrics.nearest import percent
from ..nn import Frozen
from ..plugins.manager import Plugins
from ..plugins.table import environment
from ..reporting import render
from ..rundir import schemas
from ..rundir.checkpoints import Checkpoint
from ..rundir.files import read_texts
from ..rundir.folder import ANSWERS, RunDir, read_tensors
from ..rundir.schemas import Manifest
from ..settings import TrainSpec
from ..training.callback import Callback, Logger, Observers
from ..training.checkpoint import Checkpoints, restore
from ..training.engine import Engine
from ..training.faults import explain_faults
from ..training.hardware import choose_hardware, kept_random_state
from ..training.recorder import Recorder, Signals
from ..training.rows import Rows
from ..training.watch import Collapsed, Probe, Scored, Vitals, Watch
from .adaptation import ADAPTED, Mixtures, choose
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
                if not run_dir.manifest.final:  # else it has ended, and only the report is missing
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
            views = view_features(encoder, plan.images, plan.augmentation, seed=plan.spec.seed, device=engine.device)
            health = of_views(views)
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
            run_dir.update_manifest(
                Manifest(above={name: schemas.Interval(**asdict(by)) for name, by in above.items()})
            )
        return metrics, diagnose(
            run_dir.history,
            self._landmarks(),
            scores=metrics,
            features=found.verdict,
            stopped=self.collapsed,
            paired=above,
            headline=plan.spec.method_class.headline,
            collapses=plan.spec.method_class.collapses,
        )

    def _landmarks(self) -> Sequence[Landmark]:
        return self.plan.spec.method_class.landmarks(self.plan.spec.method.config, self.plan.facts)

    def _engine(self) -> Engine:
        """The engine where the checkpoint stands, with what happens around it."""
        recorder = self._recorder()
        self.engine = self.plan.engine([recorder])
        self.plan.method.before_training(self.plan.shown())
        if self.checkpoint is not None:
            restore(self.engine, self.checkpoint)
            recorder.restore(self.checkpoint.state.callbacks)
        return self.engine

    def _trained(self, probe: Probe, engine: Engine) -> tuple[Backbone, Scored]:
        """The encoder after training, where it stands, and what the probe says of it; all processes take part."""
        start = self.plan.spec.start
        measured = start is not None and start.statistics == "measure"
        if self.checkpoint is None:
            self._keep_beginning(probe, engine)
            if measured and self._measure(engine.method.backbone):
                engine.kept.catch_up()
        self._train()
        encoder = engine.encoder()
        if measured or self.plan.method.measures_statistics:
            self._measure(encoder)
        if self.plan.held is not None:
            self._choose(encoder, self.plan.held, engine.device)
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

    def _choose(self, encoder: Backbone, held: ImageSet, device: torch.device) -> None:
        """Give the trained encoder, in place, the weights that the run is to leave; all processes take part."""
        if dist.is_main():
            self._export(encoder, ADAPTED)
        probe = _probe(self.plan, len(held), self.plan.spec.evaluate.bank, held=held)
        found = choose(Mixtures.between(read_tensors(self.run_dir.path / START)[0], encoder, self.plan, probe, device))
        if found is not None:
            self.run_dir.write_adaptation(found)

    def _export(self, encoder: Backbone, name: str) -> None:
        spec = self.plan.spec
        learned_from = self._begun_from(name)
        if name == FILE:
            learned_from += [part.about for part in self.plan.method.modules() if isinstance(part, Frozen)]
        table, preprocess = spec.table()["backbone"], self.plan.preprocess
        export_backbone(self.run_dir, spec.method.name, table, encoder, preprocess, name, learned_from)

    def _begun_from(self, name: str) -> list[Mapping[str, str]]:
        """What is known of the weights that the run begins from; the file of them keeps it for a resume."""
        if name == START or self.plan.spec.start is None:
            return [self.plan.begun] if self.plan.begun else []
        return [*learned_from_of(read_texts(self.run_dir.path / START))]

    def _measure(self, encoder: Backbone) -> int:
        """Measure the statistics of an encoder's batch norms on the images of the run; how many norms there are."""
        plan, size = self.plan, self.plan.spec.evaluate.batch_size
        return measure_statistics(encoder, plan.images, plan.preprocess, batch_size=size, device=self.engine.device)

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
            probe=_probe(self.plan, evaluate.online_queries, evaluate.online_bank, held=self.plan.held),
            vitals=Vitals(),
            rows=Rows(self.checkpoints, self.observers),
            watch=Watch(
                self.run_dir,
                self._landmarks(),
                stops=train.stop_on_collapse,
                collapses=self.plan.spec.method_class.collapses,
            ),
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


def _probe(plan: Plan, queries: int, bank: int, *, held: ImageSet | None = None) -> Probe:
    """Labelled bank and queries where the source has them, else a sample of the training images.

    Where images were held out of training, and are given, they ask, and those trained on answer.
    """
    pair, spec = plan.source.probe(), plan.spec.evaluate
    if pair is None:
        return Probe(sample(held or plan.images, queries), None, plan.preprocess, spec)
    if held is not None:
        pair = plan.images, held
    return Probe(sample(pair[1], queries), sample(pair[0], bank), plan.preprocess, spec)


def _product(encoder: Backbone, plan: Plan) -> Backbone:
    """The trained network alone, in eval mode and the plain memory layout."""
    encoder.to(memory_format=torch.contiguous_format)
    encoder.preprocess = plan.preprocess
    return encoder.eval()


# -- before it ------------------------------------------------------------------------------------
@contextmanager
def surroundings(train: TrainSpec) -> Iterator[None]:
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


def write_beginning(run_dir: RunDir, plan: Plan, plugins: Plugins) -> None:
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
        collapses=spec.method_class.collapses,
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
