"""From a trained backbone to a classifier that is kept, calibrated and judged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone
from ..config import describe
from ..config.schema import user_path, validate
from ..data import ImageSet, Preprocess
from ..errors import ConfigError, DataError, did_you_mean
from ..exporting.backbone_file import OURS, file_of, format_of, learned_from_of
from ..exporting.classifier import Classifier, save_classifier
from ..metrics.features import embed
from ..metrics.interval import Interval, interval
from ..metrics.linear import accuracy, held_out_split, linear_scores
from ..plugins.manager import Plugins
from ..rundir.files import read_texts, refuse_file
from ..settings import TrainSpec
from ..training.hardware import choose_hardware, kept_random_state, seed_generators
from .opened import Trained, at_least_one, open_weights
from .protocols import scores_of, steps_of, train_whole
from .split import Split, stratified

PARTS = ("all", "head")
SHARE_AS_TEXT = re.compile(r"0?\.\d+|1(\.0*)?")
BINS = 15  # of confidence, in the calibration error
TEMPERATURES = torch.logspace(-1, 2, 601, dtype=torch.float64)  # those that are tried


@dataclass(frozen=True)
class Finetuned:
    """A classifier that was trained and kept, and what it is worth on images that neither training nor choice saw."""

    path: Path
    """The file; `load_classifier` and `akssl predict` take it."""
    classes: tuple[str, ...]
    """The names of the classes, in the order of the probabilities."""
    accuracy: Interval
    """Percent of the test images, with its 95 % interval."""
    probe: Interval
    """The same of a linear layer on the frozen backbone, where training began."""
    scratch: Interval | None
    """The same of the network trained from its random weights alike; None: not asked for, or not known."""
    gain: Interval | None
    """Points above that one, image by image."""
    calibration: tuple[float, float]
    """Expected calibration error in percent, in 15 bins of confidence, before and after the temperature."""
    temperature: float
    """What scores are divided by, chosen on images held out of training."""
    trained_on: int
    """Images that were trained on; a fifth of each class was held out beside them."""
    steps: int
    """Of training all parts, after the linear layer; 0 where the backbone stayed as it was."""
    tested_on: int
    """Test images."""

    @property
    def text(self) -> str:
        """What was written and what it is worth, as `akssl finetune` prints it."""
        rows = [[name, _points(value)] for name, value in self._systems() if value is not None]
        tuned = f", {self.steps} steps of all parts" if self.steps else ""
        lines = [f"{self.path}: {len(self.classes)} classes, trained on {self.trained_on} images{tuned}"]
        lines.append(describe.table([f"accuracy on {self.tested_on} test images", "% (95 % interval)"], rows))
        if self.gain is not None:
            lines.append(f"{_points(self.gain, sign='+')} points against the same network from scratch")
        before, after = self.calibration
        lines.append(f"calibration error {before:.1f} % -> {after:.1f} % (temperature {self.temperature:.3g})")
        return "\n".join([*lines, f"Use it: akssl predict {self.path} --data DIR --out predictions.csv"])

    def _systems(self) -> Iterator[tuple[str, Interval | None]]:
        yield from (("this classifier", self.accuracy), ("linear layer on the frozen backbone", self.probe))
        yield "the same network from scratch", self.scratch

    def record(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON."""
        return {**asdict(self), "path": str(self.path)}


def finetune(
    source: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    data: Any = None,
    labels: str | Path | None = None,
    test_data: str | Path | None = None,
    share: float = 1.0,
    parts: str = "all",
    epochs: int | None = None,
    scratch: bool = True,
    backbone: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: str = "auto",
    overwrite: bool = False,
    plugins: Plugins | None = None,
) -> Finetuned:
    """Train a classifier on a backbone, calibrate it, judge it, and write it to a file.

    First a linear layer learns on the frozen backbone, then both learn from there, so that a random layer spoils no
    features (LP-FT, Kumar et al. 2022, arXiv 2202.10054). A fifth of each class is held out of that to choose the
    layer's penalty and the temperature of the scores (Guo et al. 2017, arXiv 1706.04599). Test images are those of
    the data, or a fifth of each class where they have none; nothing is chosen by them.

    Args:
        source: the folder of a run that has ended, a `.safetensors` file of weights, or the name of a backbone that has
            published ones; as for `embed`.
        out: the file to write, .safetensors.
        data: labelled images as `run` takes them. Default: those of the run.
        labels: a table that gives each image of `data` its label.
        test_data: labelled test images of your own, as a folder, a table or an archive.
        share: of the training labels that are used, the same of each class.
        parts: "all", or "head": the backbone stays as it is.
        epochs: of training all parts. Default: 10, and at least 500 steps where labels are few.
        scratch: train the same network from random weights too, as long, to compare; a run alone knows them.
        backbone: your own network, to be filled, if the run trained one.
        seed: of what is held out, drawn and ordered.
        batch_size: images a forward pass that trains nothing.
        device: "auto", "cpu", "cuda", "mps" or "xpu".
        overwrite: replace the file `out`.
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: there are no such weights or data, the data have no labels or one class alone, or the file cannot
            or must not be written. All but a full disk is told before training.
    """
    path = user_path(out)
    _refuse(path, parts, share, labels, overwrite=overwrite)
    for name, value in {"epochs": 1 if epochs is None else epochs, "batch_size": batch_size}.items():
        at_least_one(name, value)
    trained = open_weights(source, backbone=backbone, plugins=plugins)
    if path.exists() and trained.path.exists() and path.samefile(file_of(trained.path)):
        raise ConfigError(f"out: '{path}' is what it begins from. Choose another name.")
    network, begun = _network(trained), trained.is_run
    hardware = choose_hardware(validate(TrainSpec, {"device": device, "precision": "fp32"}, registry=trained.plugins))
    split = Split.of(*trained.source(data, test_data, labels))
    work = _Work.of(split, share, epochs, seed, batch_size, hardware.device)
    with kept_random_state(hardware.device):
        model = work.model(trained.backbone)
        work.probe(model)
        probe = work.right(work.scores(model, split.test))
        if parts == "all":
            work.train(model)
        alone = work.scratch(trained.untrained()) if scratch and begun else None
    found = _judged(path, work, model, probe, alone, steps_of(epochs, len(work.train_images)) if parts == "all" else 0)
    measured = {name: value for name, value in found.record().items() if name not in ("path", "classes")}
    save_classifier(path, model.cpu(), *network, measured)
    return found


def _judged(path: Path, work: _Work, model: Classifier, probe: Tensor, alone: Tensor | None, steps: int) -> Finetuned:
    """Calibrate the classifier, and say what it is worth beside what is right by its first layer and from scratch."""
    model.temperature = work.temperature(work.scores(model, work.held))
    scores = work.scores(model, work.split.test)
    right = work.right(scores)
    return Finetuned(
        path=path,
        classes=model.classes,
        accuracy=_percent(right),
        probe=_percent(probe),
        scratch=None if alone is None else _percent(alone),
        gain=None if alone is None else interval(right - alone, least=-100, most=100),
        calibration=(work.calibration_error(scores), work.calibration_error(scores / model.temperature)),
        temperature=model.temperature,
        trained_on=len(work.train_images),
        steps=steps,
        tested_on=len(work.split.test),
    )


def _refuse(path: Path, parts: str, share: Any, labels: Any, *, overwrite: bool) -> None:
    """Refuse what can be seen to be wrong before anything is opened."""
    if path.suffix.lower() != ".safetensors":
        raise ConfigError(f"--out: '{path}' must end in .safetensors, as the file of a classifier does.")
    refuse_file(path, overwrite=overwrite)
    if parts not in PARTS:
        raise ConfigError(f"parts: '{parts}' is none of {', '.join(PARTS)}.{did_you_mean(str(parts), PARTS)}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(f"share: {share!r} is no share of the labels; expected above 0 and at most 1, as 0.1.")
    if SHARE_AS_TEXT.fullmatch(str(labels)) and not os.path.exists(str(labels)):
        raise ConfigError(f"labels: {labels} is no table of labels. To train on a share of them: --share {labels}.")


def _network(trained: Trained) -> tuple[str, dict[str, Any], list[Mapping[str, str]]]:
    """The method that trained a backbone, the settings by which it is built again, and what it has learned from."""
    if os.path.exists(file := file_of(trained.path)) and format_of(texts := read_texts(file)) in OURS:
        return texts.get("method", "unknown"), json.loads(texts["backbone"]), [*learned_from_of(texts)]
    settings = {"name": trained.backbone.name, **trained.backbone.config.model_dump(mode="json")}
    return "unknown", settings, [trained.about] if trained.about else []


def _points(found: Interval, sign: str = "") -> str:
    return f"{found.mean:{sign}.1f} ({found.low:{sign}.1f} to {found.high:{sign}.1f})"


def _percent(right: Tensor) -> Interval:
    return interval(right, least=0, most=100)


@dataclass(frozen=True)
class _Work:
    """Labelled images, what is trained on and what is held out of that, and how."""

    split: Split
    classes: tuple[str, ...]
    train_images: ImageSet
    targets: Tensor
    """(N,) of the images that are trained on, from 0 to classes - 1."""
    held: ImageSet
    held_targets: Tensor
    test_targets: Tensor
    """(Q,); -1 for a class that was not trained on."""
    epochs: int | None
    seed: int
    batch_size: int
    device: torch.device

    @classmethod
    def of(
        cls, split: Split, share: float, epochs: int | None, seed: int, batch_size: int, device: torch.device
    ) -> _Work:
        """A fifth of each class of the labels that are used is held out.

        Raises:
            DataError: there is one class alone, or no class with two images.
        """
        rows = torch.arange(len(split.labels)) if share == 1 else stratified(split.labels, share, seed)
        labels, targets, held = held_out_split(split.labels[rows], seed)
        names = split.train.classes
        place = {int(label): i for i, label in enumerate(labels)}
        return cls(
            split,
            tuple(names[label] if names else str(label) for label in place),
            split.train.subset(rows[~held]),
            targets[~held],
            split.train.subset(rows[held]),
            targets[held],
            torch.tensor([place.get(int(label), -1) for label in split.test_labels]),
            epochs,
            seed,
            batch_size,
            device,
        )

    def model(self, backbone: Backbone) -> Classifier:
        """A classifier on a backbone; scores are zero before training."""
        seed_generators(self.device, self.seed)
        model = Classifier(backbone, self.classes).to(self.device)
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        return model

    def scores(self, model: Classifier, images: ImageSet) -> Tensor:
        """Scores (N, K) on the CPU, before temperature and softmax."""
        return scores_of(nn.Sequential(model.backbone, model.head), _feed(model), images, self.batch_size, self.device)

    def probe(self, model: Classifier) -> None:
        """Fit the linear layer to features of the frozen backbone, in float64 on the CPU."""
        parts = [
            embed(model.backbone, images, _feed(model), batch_size=self.batch_size, device=self.device)
            for images in (self.train_images, self.held)
        ]
        bank, targets = torch.cat(parts), torch.cat([self.targets, self.held_targets])
        held = torch.arange(len(bank)) >= len(parts[0])
        if not bank.isfinite().all():
            raise DataError("finetune: features of the backbone are not finite. The weights have diverged.")
        fitted = linear_scores(bank, targets, held, accuracy, refit=False)
        with torch.no_grad():
            bias = fitted(bank.new_zeros(1, bank.shape[1]))
            model.head.bias.copy_(bias[0])
            model.head.weight.copy_((fitted(torch.eye(bank.shape[1])) - bias).T)

    def train(self, model: Classifier) -> None:
        """Train all parts from where they stand."""
        whole, seed = nn.Sequential(model.backbone, model.head), self.seed
        images, targets = self.train_images, self.targets
        train_whole(whole, _feed(model), images, targets, epochs=self.epochs, seed=seed, device=self.device)
        model.eval()

    def scratch(self, backbone: Backbone) -> Tensor:
        """Whether (1, Q) the network from random weights is right, in percent, after the same training."""
        model = self.model(backbone)
        self.train(model)
        return self.right(self.scores(model, self.split.test))

    def right(self, scores: Tensor) -> Tensor:
        """100 where the best score is that of the test image's class, else 0: (1, Q) float64."""
        return 100 * (scores.argmax(1) == self.test_targets).double()[None]

    def temperature(self, held: Tensor) -> float:
        """The one under which the held-out images' classes are the likeliest, by their scores (n, K).

        To be away from 1 costs its squared logarithm / n: a few images that are all right make nothing certain.
        """
        losses = [F.cross_entropy(held.double() / by, self.held_targets) for by in TEMPERATURES]
        return float(TEMPERATURES[(torch.stack(losses) + TEMPERATURES.log().square() / len(held)).argmin()])

    def calibration_error(self, scores: Tensor) -> float:
        """Percent that confidence and accuracy are apart, over 15 bins of confidence (Guo et al. 2017, section 2)."""
        confidence, guesses = scores.double().softmax(1).max(1)
        right = (guesses == self.test_targets).double()
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, right - confidence)
        return 100 * gaps.abs().sum().item() / len(scores)


def _feed(model: Classifier) -> Preprocess:
    assert model.preprocess is not None
    return model.preprocess
