"""From a run folder to an `Evaluation`, and to the run's `evaluation.json`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import user_path, validate
from ..console import Progress
from ..errors import AksslError, ConfigError, did_you_mean
from ..metrics.diagnosis import BASELINES, START, judged, read_diagnosis
from ..metrics.interval import Interval, interval
from ..plugins.manager import Plugins
from ..rundir.files import CannotWrite
from ..rundir.folder import RunDir
from ..rundir.schemas import Evaluations, Manifest
from ..settings import TrainSpec
from ..training.hardware import choose_hardware
from .opened import Trained, at_least_one, open_trained
from .protocols import FineTune, Guesses, Knn, Linear, Protocol, Solver, System
from .result import GIVEN, HOW, NAMES, PIXELS, RANDOM, TRAINED, Comparison, Evaluation, Score
from .segment import segment
from .split import Split, also_trained, stratified

EVALUATION_FORMAT = "akssl-evaluation-1"  # of evaluation.json
OWN = {
    "knn": "k",
    "linear": "solver",
    "finetune": "epochs",
    "segment": "masks",
}  # the protocols, and the setting that each alone has
USUAL_KS = (10, 20, 100, 200)
USUAL_K = 20  # of the comparisons, where it is among those that were asked for


def evaluate(
    run_dir: str | Path,
    protocol: str | None = None,
    *,
    data: Any = None,
    labels: float | Sequence[float] = 1.0,
    seeds: int = 5,
    k: int | Sequence[int] | None = None,
    weights: str | Path | None = None,
    backbone: nn.Module | None = None,
    solver: Solver | None = None,
    epochs: int | None = None,
    masks: str | Path | None = None,
    test_data: str | Path | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    batch_size: int = 256,
    device: str = "auto",
    plugins: Plugins | None = None,
) -> Evaluation:
    """Judge what a run has learned, with 95 % intervals, beside raw pixels, itself untrained and what it began from.

    The run is left as it is, except for `evaluation.json` in its folder, which collects what was found, and for its
    verdict, where this is the protocol that the method is judged by, with all labels of the run's own data and, of
    fine-tuning, no fewer steps than by default.

    Args:
        run_dir: the folder of a run that has ended.
        protocol: "knn", "linear" (a probe on frozen features), "finetune" (a copy of the whole backbone) or "segment"
            (a linear classifier of frozen patch features, judged by the pixels of masks). Default: that by which the
            run's method is judged.
        data: labelled data as `run` takes it, or a table of a source's settings. Default: that of the run.
        labels: share of the training labels to use, or several; each class keeps the same share, at least one image.
        seeds: draws of the labels. Where all are used, k-NN and probe have nothing to draw and are computed once.
        k: neighbours of the k-NN, one number or several. Default: 10, 20, 100 and 200.
        weights: a .safetensors file to compare with, of ImageNet say: a state dict under the backbone library's names.
        backbone: your own network as it began, if the run trained one.
        solver: of the linear probe: "lbfgs", "sgd" or "auto", the default, which takes SGD where features are many.
        epochs: of the fine-tuning. Default: 10, and at least 500 steps where labels are few.
        masks: of the segmentation: a folder of PNG files under the names of the images, whose values are numbers of
            classes and 255 for "none". Default: the masks of the source.
        test_data: labelled test images of your own, as a folder, a table or an archive; all of `data` is learned from.
        train_images: learn from at most so many images, spread over the data.
        test_images: test on at most so many.
        batch_size: images a forward pass.
        device: "auto", "cpu", "cuda", "mps" or "xpu".
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: there is no such run, the data have no labels, or a setting is wrong; nothing is written.
    """
    shares = _shares(labels)
    limits = {"train_images": train_images, "test_images": test_images}
    for name, value in {"seeds": seeds, "batch_size": batch_size, **limits}.items():
        at_least_one(name, 1 if value is None and name in limits else value)
    settings = {"k": k, "solver": solver, "epochs": epochs, "masks": masks}
    trained = open_trained(run_dir, backbone=backbone, plugins=plugins)
    folder = RunDir.open(trained.path)
    protocol = protocol or folder.manifest.headline
    _only_own(protocol, {name for name, value in settings.items() if value is not None})
    hardware = choose_hardware(validate(TrainSpec, {"device": device, "precision": "fp32"}, registry=trained.plugins))
    way = None if protocol == "segment" else _protocol(protocol, settings, batch_size, hardware.device)
    systems, notes = _systems(trained, weights)
    source, name = trained.source(data, test_data)
    if way is None:
        _only_all(shares)
        where = None if masks is None else user_path(masks)
        split = Split.with_masks(source, name, where, train_images, test_images, trained.preprocess.square)
        found = segment(systems, split, batch_size, hardware.device)
    else:
        split = Split.of(source, name, train_images, test_images)
        draws = {share: _draws(split.labels, share, seeds, way) for share in shares}
        found = _evaluation(way, split, draws, _all_right(way, systems, split, draws))
    own = data is None and test_data is None
    notes += [] if own else _seen(trained, split)
    settles = way is None or way.settles(len(split.train))
    notes += [] if settles else ["shorter than by default: the verdict of the run stays as it is"]
    found = replace(found, data=name, notes=(*notes, *found.notes, *_warnings(split)))
    try:
        found = replace(found, file=_collect(folder, trained, found))
        if own and settles and 1.0 in shares:
            _judge(folder, found.only(1.0))
        return found
    except CannotWrite as error:
        warnings.warn(f"the results are not kept: {error}", UserWarning, stacklevel=2)
        return found


# -- what was asked for ---------------------------------------------------------------------------
def _shares(labels: Any) -> list[float]:
    shares = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [labels]
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) <= 1:
            raise ConfigError(f"labels: {share!r} is no share of the labels; expected above 0 and at most 1, as 0.1.")
    if not shares:
        raise ConfigError("labels: expected a share of the labels, or several; got none.")
    return [float(share) for share in dict.fromkeys(shares)]


def _only_all(shares: list[float]) -> None:
    if shares != [1.0]:
        raise ConfigError("labels: the segmentation learns from all masks. Leave it out, or use --train-images.")


def _only_own(protocol: str, given: set[str]) -> None:
    """Refuse an unknown protocol, and settings that belong to another one: they would change nothing."""
    if protocol not in OWN:
        hint = did_you_mean(str(protocol), OWN)
        raise ConfigError(f"protocol: there is no '{protocol}'.{hint} Protocols: {', '.join(OWN)}.")
    for name in sorted(given - {OWN[protocol]}):
        owner = next(other for other, own in OWN.items() if own == name)
        raise ConfigError(
            f"{name}: a setting of the protocol '{owner}'; this is '{protocol}'. Leave it out, or: --protocol {owner}"
        )


def _protocol(name: str, settings: Mapping[str, Any], batch_size: int, device: torch.device) -> Protocol:
    own = settings[OWN[name]]
    if name == "knn":
        ks = USUAL_KS if own is None else list(own) if isinstance(own, Iterable) else [own]
        if not ks:
            raise ConfigError("k: expected a number of neighbours, or several; got none.")
        for k in ks:
            at_least_one("k", k)
        return Knn(batch_size, device, sorted({int(k) for k in ks}))
    if name == "linear":
        if own not in (None, "auto", "lbfgs", "sgd"):
            raise ConfigError(f"solver: '{own}' is none of auto, lbfgs, sgd.")
        return Linear(batch_size, device, own or "auto")
    if own is not None:
        at_least_one("epochs", own)
    return FineTune(own, batch_size, device)


def _systems(trained: Trained, weights: str | Path | None) -> tuple[list[System], list[str]]:
    """The systems to compare, the trained backbone first."""
    feed = trained.preprocess
    systems = [
        System(TRAINED, trained.backbone, feed),
        System(RANDOM, trained.untrained(), feed),
        System(PIXELS, None, feed),
    ]
    notes = []
    if (start := trained.start()) is not None:
        systems.append(System(START, start, start.preprocess or feed))
    elif trained.config.get("start"):
        source = trained.config["start"]["source"]
        notes.append(f"this run began from weights and its folder does not keep them: compare with --weights {source}")
    if weights is not None:
        given, told = trained.with_weights(user_path(weights))
        systems.append(System(GIVEN, given, given.preprocess or feed))
        notes += told
    return systems, notes


def _draws(labels: Tensor, share: float, seeds: int, way: Protocol) -> list[Tensor]:
    """The rows that are learned from, one tensor for each seed; once where the seed changes nothing that counts."""
    if share == 1:
        return [torch.arange(len(labels))] * (seeds if way.repeats else 1)
    return [stratified(labels, share, seed) for seed in range(seeds)]


# -- what was found -------------------------------------------------------------------------------
Right = dict[tuple[str, float, int | None], Tensor]  # (draws, Q) of 0 and 100 by system, share and k


def _all_right(way: Protocol, systems: list[System], split: Split, draws: dict[float, list[Tensor]]) -> Right:
    """Let each system guess the test images after each draw of labels; one system is in memory at a time."""
    jobs = [(share, seed, rows) for share, of in draws.items() for seed, rows in enumerate(of)]
    result: dict[tuple[str, float, int | None], list[Tensor]] = {}
    quick = sorted(systems, key=lambda system: system.backbone is not None)  # pixels tell what is wrong with labels
    with Progress(len(systems) * len(jobs), "fit", leave=False) as progress:
        for system in quick:
            guesses_after, found = way.learner(system, split), Guesses()
            repeats = way.repeats and system.backbone is not None
            for share, seed, rows in jobs:
                if seed == 0 or share < 1 or repeats:  # else it would be the same once more
                    found = guesses_after(rows, seed)
                for k, guesses in found.items():
                    right = 100 * (guesses == split.test_labels).double()
                    result.setdefault((system.name, share, k), []).append(right)
                progress.update()
                if repeats:
                    progress.tell(f"{way.name}: {system.name}, {100 * share:g} % of the labels, draw {seed + 1}")
            progress.tell(f"{way.name}: {system.name} is judged")
    order = [system.name for system in systems]
    return {key: torch.stack(result[key]) for key in sorted(result, key=lambda key: order.index(key[0]))}


def _evaluation(way: Protocol, split: Split, draws: dict[float, list[Tensor]], right: Right) -> Evaluation:
    ks = [k for name, share, k in right if name == TRAINED and share == next(iter(draws))]
    usual = USUAL_K if USUAL_K in ks else ks[0]
    scores = []
    for (name, share, k), values in right.items():
        found = interval(values, least=0, most=100)
        each = tuple(values.mean(1).tolist())
        scores.append(Score(name, share, len(draws[share][0]), k, found.mean, found.low, found.high, each))
    scores.sort(key=lambda score: list(draws).index(score.labels))  # stable: systems and k stay in order
    return Evaluation(
        protocol=way.name,
        meaning=way.meaning,
        interval=HOW,
        data="",
        split=split.record(),
        k=usual,
        scores=tuple(scores),
        comparisons=tuple(_comparisons(right, list(draws), usual)),
    )


def _comparisons(right: Right, shares: list[float], k: int | None) -> Iterator[Comparison]:
    """The trained backbone against every other system, paired by draw and test image."""
    others = dict.fromkeys(name for name, *_ in right if name != TRAINED)
    for share in shares:
        for other in others:
            found = interval(right[TRAINED, share, k] - right[other, share, k], least=-100, most=100)
            yield Comparison(other, share, k, found.mean, found.low, found.high)


def _seen(trained: Trained, split: Split) -> list[str]:
    """A warning of test images that the run has trained on, as far as its own data are still there."""
    try:
        seen = also_trained(split.test, trained.source()[0].train())
    except AksslError:  # they were moved, or came from Python
        return []
    if not seen:
        return []
    named = f"{', '.join(seen[:3])}{', ...' if len(seen) > 3 else ''}"
    return [f"this run has trained on {len(seen)} of the {len(split.test)} test images, without their labels ({named})"]


def _warnings(split: Split) -> list[str]:
    """Warnings for the reader of the numbers."""
    notes = split.twice.warnings(len(split.test))
    if split.unreadable:
        notes.append(f"{len(split.unreadable)} images could not be read and are left out")
    return notes


def _collect(folder: RunDir, trained: Trained, found: Evaluation) -> Path:
    """Add to `evaluation.json`, by protocol, data and share of labels; results of earlier weights are dropped."""
    known = folder.evaluations
    same = known.format == EVALUATION_FORMAT and known.backbone == trained.fingerprint
    results = known.table().get("results", {}) if same else {}
    by_share = results.setdefault(found.protocol, {}).setdefault(found.data, {})
    by_share |= {f"{share:g}": found.only(share).record() for share in found.labels}
    return folder.write_evaluations(
        Evaluations(format=EVALUATION_FORMAT, backbone=trained.fingerprint, results=results)
    )


def _judge(folder: RunDir, found: Evaluation) -> None:
    """The verdict of the run by these scores, if its method is judged by them and nothing worse is known of it."""
    manifest = folder.manifest
    told = read_diagnosis(manifest.table(), folder.history)
    if found.protocol != manifest.headline or found.protocol == "knn" or told.verdict != "healthy":
        return
    by = {NAMES[one.against]: one for one in found.comparisons}
    above = {name: Interval(by[name].difference, by[name].low, by[name].high) for name in BASELINES if name in by}
    known = {name: found.metrics[f"{found.protocol}_{name}"] for name in above}
    verdict = judged(found.protocol, found.accuracy, known, above)
    folder.update_manifest(Manifest(diagnosis=asdict(verdict)))
