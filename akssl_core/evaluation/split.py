"""The images that classifiers learn from and those they are judged by: labelled, readable, and told apart."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import DatasetSource, HoldOutSource, ImageSet, Prepared
from ..data.convert import Square
from ..data.labels import without
from ..data.masks import Masked
from ..draws import fold
from ..errors import DataError
from ..metrics.copies import copied, thumbnail
from ..metrics.features import sample, spread

HASHED_TOGETHER = 64  # images looked at together
COMPARED = 2000  # test images, spread over all, that are compared with near copies
MOST_COMPARED = 100_000  # training images of which thumbnails are kept, three kilobytes each
NAMED = 5  # images that a message names


@dataclass(frozen=True)
class Twice:
    """Test images that are training images too, by their ids."""

    equal: tuple[str, ...]  # pixel for pixel
    near: tuple[str, ...]  # recompressed, resized, cropped a little or of other brightness
    looked_at: int  # test images that were compared with near ones; 0: the training images are too many

    def record(self) -> dict[str, Any]:
        """How many, and the first of each, as plain values."""
        equal = {"overlap": len(self.equal), "overlap_ids": list(self.equal[:NAMED])}
        near = {"near_copies": len(self.near), "near_copies_ids": list(self.near[:NAMED])}
        return {**equal, **near, "near_copies_of": self.looked_at}

    def warnings(self, tested: int) -> list[str]:
        """What the reader of an accuracy should know, of so many test images."""
        found = (
            (self.equal, tested, "training images, pixel for pixel"),
            (self.near, self.looked_at, "near copies of training images (`akssl dedup` finds such)"),
        )
        too_high = "the accuracies are too high by what they give away"
        return [
            f"{len(ids)} of {of} test images are also {what} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}): "
            f"{too_high}"
            for ids, of, what in found
            if ids
        ]


@dataclass(frozen=True)
class Split:
    """Train and test images with a label each, (N,) and (Q,) int64, and which test images train as well."""

    train: ImageSet
    test: ImageSet
    labels: Tensor
    test_labels: Tensor
    how: str
    twice: Twice
    unreadable: Mapping[str, str]  # id -> reason; left out

    @classmethod
    def of(cls, source: DatasetSource, data: str, train: int | None = None, test: int | None = None) -> Split:
        """The split that a source has or makes; at most `train` and `test` images, spread over each part.

        Raises:
            DataError: there are no labels, or no labelled image that can be read.
        """
        pair = source.probe()
        if pair is None or any(images.labels is None for images in pair):
            why = source.notes[-1] if source.notes else "no labels"
            raise DataError(
                f"data: {data} has no labelled images to judge a backbone by ({why}). Labels are required here: a "
                f"sub-folder for each of two classes or more, a table (setting data.labels), a pair (images, labels), "
                f"or a labelled source, --data SOURCE."
            )
        bank, queries = pair[0] if train is None else sample(pair[0], train), pair[1]
        queries = queries if test is None else sample(queries, test)
        bank, queries, twice, unreadable = _looked_at(bank, queries, _labelled(bank), _labelled(queries), data)
        assert bank.labels is not None
        assert queries.labels is not None
        return cls(bank, queries, bank.labels, queries.labels, _how(source), twice, unreadable)

    @classmethod
    def with_masks(
        cls, source: DatasetSource, data: str, folder: Path | None, train: int | None, test: int | None, square: Square
    ) -> Split:
        """The same for images with masks, in place of labels: those of the source or of a folder.

        Where the source has no test images, every fifth image tests.

        Raises:
            DataError: there are no masks, or no image with one that can be read.
        """
        pair = source.probe()
        how = _how(source) if pair else "one image in five tests; runs on these data may have trained on it"
        if pair is None:
            images = source.all()
            tests = spread(len(images), max(1, len(images) // 5))
            pair = images.subset(without(tests, len(images))), images.subset(tests)
        masked = [images if folder is None else Masked(images, folder) for images in pair]
        if folder is not None:
            _refuse_one_mask_for_two(masked)
        if any(images.masks([0], square) is None for images in masked):
            raise DataError(f"data: {data} has no masks. Give a folder of them: --masks DIR.")
        bank, queries = (
            images if most is None else sample(images, most) for images, most in zip(masked, (train, test), strict=True)
        )
        every = [list(range(len(images))) for images in (bank, queries)]
        bank, queries, twice, unreadable = _looked_at(bank, queries, every[0], every[1], data)
        none = torch.zeros(0, dtype=torch.int64)
        return cls(bank, queries, none, none, how, twice, unreadable)

    def record(self) -> dict[str, Any]:
        """Which images and how many, as plain values."""
        return {
            "how": self.how,
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": len(torch.unique(self.labels)),
            **self.twice.record(),
            "unreadable": dict(self.unreadable),
        }


def _refuse_one_mask_for_two(masked: Sequence[ImageSet]) -> None:
    """Refuse images of the same name, in one part or in both, for a mask is found by that name.

    Raises:
        DataError: there are some.
    """
    ids = Counter(os.path.splitext(images.id_of(i))[0] for images in masked for i in range(len(images)))
    if several := sorted(name for name, count in ids.items() if count > 1):
        raise DataError(
            f"masks: several images are named '{several[0]}' ({len(several)} such names), and a mask is found by that "
            "name. Name the images apart, as in folders of their own under one that --data names."
        )


def stratified(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Positions of a share of the labels (N,), in ascending order: the same share of each class, at least one image.

    A smaller share of the same seed is part of a larger one.
    """
    generator = torch.Generator().manual_seed(fold(seed) & (2**63 - 1))
    chosen = []
    for label in torch.unique(labels):
        rows = torch.nonzero(labels == label).flatten()
        order = rows[torch.randperm(len(rows), generator=generator)]
        chosen.append(order[: max(1, round(fraction * len(rows)))])
    return torch.cat(chosen).sort().values


def _looked_at(
    bank: ImageSet, queries: ImageSet, rows: list[int], query_rows: list[int], data: str
) -> tuple[ImageSet, ImageSet, Twice, Mapping[str, str]]:
    """Those of both parts at these rows that can be read, the queries that are in both, and what is unreadable."""
    many = len(rows) > MOST_COMPARED
    seen = _look(bank, rows, set() if many else set(rows), data)
    compared = set() if many else {query_rows[i] for i in spread(len(query_rows), min(COMPARED, len(query_rows)))}
    asked = _look(queries, query_rows, compared, data)
    known = set(seen.hashes)
    equal = [i for i, key in zip(asked.kept, asked.hashes, strict=True) if key in known]
    shapes = torch.tensor([*seen.shapes, *asked.shapes]).view(-1, 2)
    near = copied([*seen.thumbnails, *asked.thumbnails], shapes, len(seen.thumbnails)).tolist()
    found = [i for i, is_near in zip((i for i in asked.kept if i in compared), near, strict=True) if is_near]
    names = [tuple(map(queries.id_of, of)) for of in (equal, [i for i in found if i not in set(equal)])]
    bank, queries = (_only(of, torch.tensor(looked.kept)) for of, looked in ((bank, seen), (queries, asked)))
    return bank, queries, Twice(names[0], names[1], len(asked.thumbnails)), {**bank.unreadable, **queries.unreadable}


def _labelled(images: ImageSet) -> list[int]:
    assert images.labels is not None
    found: list[int] = torch.nonzero(images.labels >= 0).flatten().tolist()
    return found


@dataclass(frozen=True)
class _Looked:
    """Images that can be read: positions, hashes of size and pixels; thumbnails and shapes of those asked for."""

    kept: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    thumbnails: list[Tensor] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


def _look(images: ImageSet, rows: list[int], compared: set[int], data: str) -> _Looked:
    found = _Looked()
    for start in range(0, len(rows), HASHED_TOGETHER):
        index = rows[start : start + HASHED_TOGETHER]
        pixels = images.fetch(index)
        bad = {i for i, _ in pixels.unreadable}
        for place, i in enumerate(index):
            if i in bad:
                continue
            image = pixels.image(place).contiguous()
            shape = repr(tuple(image.shape)).encode()
            found.hashes.append(hashlib.blake2b(image.numpy().tobytes(), digest_size=16, key=shape[:64]).digest())
            found.kept.append(i)
            if i in compared:
                found.thumbnails.append(thumbnail(image))
                found.shapes.append(image.shape[1:])
    if not found.kept:
        raise DataError(f"data: {data} has no labelled image that can be read. Look at its files, or give other data.")
    return found


def _only(images: ImageSet, rows: Tensor) -> ImageSet:
    return images if len(rows) == len(images) else images.subset(rows)


def _how(source: DatasetSource) -> str:
    """Where the split comes from."""
    if isinstance(source, Prepared):
        return "the split that the file was prepared with"
    if isinstance(source, HoldOutSource) and source.holds_out:
        return "held out: one labelled image in five of each class tests, which runs on these data do not train on"
    return "the source's own training and test images"


def also_trained(test: ImageSet, train: ImageSet) -> list[str]:
    """The ids of test images that a run has trained on: the same file, or another with the same bytes."""
    files = [(test.id_of(i), file) for i in range(len(test)) if (file := test.file_of(i)) is not None]
    sizes = {size for _, file in files if (size := _bytes_in(file)) is not None}
    trained = [file for i in range(len(train)) if files and (file := train.file_of(i)) is not None]
    known = {_digest(file) for file in trained if _bytes_in(file) in sizes}
    return [name for name, file in files if _bytes_in(file) is not None and _digest(file) in known]


def _bytes_in(file: Path) -> int | None:
    """The length of a file; None where it cannot be found out."""
    try:
        return file.stat().st_size
    except OSError:
        return None


def _digest(file: Path) -> bytes:
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError:
        return b""
