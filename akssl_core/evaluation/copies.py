"""Near copies among the images of some data, as groups of which one is to keep. Nothing is deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import describe
from ..config.schema import user_path
from ..console import Progress
from ..data import ImageSet, image_header
from ..data.prepare import named
from ..errors import ConfigError, DataError, visible
from ..metrics.copies import LIMIT, NEAREST, differences, signatures, thumbnail
from ..metrics.nearest import nearest
from ..plugins.manager import Plugins
from ..reporting.html import page, section, table, tag
from ..reporting.pictures import channel_note
from ..rundir.files import refuse_file, write_atomic
from .embedding import Work, work_on
from .opened import open_weights
from .searching import captioned, pictures_of

ON_A_PAGE = 100  # groups with pictures

Group = list[tuple[int, float]]  # positions and differences, the one to keep first


@dataclass(frozen=True)
class Deduplicated:
    """Groups of near copies."""

    groups: list[list[str]]
    """The names of each group's images: the one to keep, then its copies."""
    differences: list[list[float]]
    """How far each is from the one to keep, 0 (equal) to 1 (what counts as a copy just so)."""
    delete: list[str]
    """The files of all copies that are not to keep, or their names where they lie in no file of their own."""
    images: int
    """How many images were compared."""
    unreadable: Mapping[str, str]
    """Images that could not be read and are left out: name -> reason."""
    written: tuple[Path, ...] = ()
    """The page and the list, where they were asked for."""

    @property
    def text(self) -> str:
        """A line for each copy, as `akssl dedup` prints it."""
        rows = [
            [str(number), visible(names[0]), f"{difference:.2f}", visible(name)]
            for number, (names, apart) in enumerate(zip(self.groups, self.differences, strict=True), 1)
            for name, difference in list(zip(names, apart, strict=True))[1:]
        ]
        parts = [describe.table(["group", "keep", "difference", "copy"], rows)] if rows else []
        parts.append(f"{len(self.delete)} near copies of {len(self.groups)} among {self.images} images")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable and left out{named(self.unreadable)}")
        return "\n\n".join([*parts, *(f"Written: {path}" for path in self.written)])

    def record(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON."""
        groups = [
            {"keep": keep, "copies": [{"image": i, "difference": d} for i, d in zip(copies, distances, strict=True)]}
            for (keep, *copies), (_, *distances) in zip(self.groups, self.differences, strict=True)
        ]
        more = {"images": self.images, "unreadable": dict(self.unreadable), "written": list(map(str, self.written))}
        return {"groups": groups, "delete": self.delete, **more}


def dedup(
    source: str | Path | Mapping[str, Any],
    *,
    data: Any = None,
    out: str | Path | None = None,
    list_to: str | Path | None = None,
    overwrite: bool = False,
    backbone: nn.Module | None = None,
    batch_size: int = 256,
    device: str = "auto",
    plugins: Plugins | None = None,
) -> Deduplicated:
    """Near copies among images: recompressed, resized, cropped by up to 5 % or of other brightness. None is deleted.

    Each image is compared pixel by pixel (`metrics.copies.difference`) with the five that are most alike by the
    backbone's features and five by their thumbnails. A group is an image and what is a copy of it, directly. The one
    to keep has the longest shorter side, then the largest file, then the first place.

    Args:
        source: a run, a file of weights, a name or a table, as `embed` takes it.
        data: the images. Default: the data of the run.
        out: an HTML page to write, with the pictures of up to 100 groups.
        list_to: a text file to write, with the path of a file to delete on each line.
        overwrite: replace files that `out` and `list_to` name.
        backbone: your own network, to be filled, if the run trained one.
        batch_size: images a forward pass.
        device: "auto", "cpu", "cuda", "mps" or "xpu".
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: there are no such weights or data, none can be read, or a file cannot be written there.
    """
    files = {name: user_path(path) for name, path in (("--out", out), ("--list-to", list_to)) if path is not None}
    if len(set(files.values())) < len(files):
        raise ConfigError("--list-to: is the same file as --out. Choose another name.")
    for name, path in files.items():
        refuse_file(path, overwrite=overwrite, name=name, page=name == "--out")
    trained = open_weights(source, backbone=backbone, plugins=plugins)
    work = work_on(trained, data, batch_size=batch_size, device=device)
    if list_to is not None and work.images.file_of(0) is None:
        raise ConfigError(
            f"--list-to: images of {work.data} lie in no files of their own. Give the folder that they come from, or "
            f"take their names from --json."
        )
    _refuse_images(files, work.images)
    with torch.random.fork_rng(devices=[]):
        features, thumbnails, shapes, rows = _looked_at(work)
    pairs, apart = _copies(features, thumbnails, shapes, work.device)
    order = _order(work.images, rows, shapes, pairs)
    compare = partial(differences, thumbnails, shapes)
    groups = [[(rows[i], d) for i, d in group] for group in _groups(pairs, apart, compare, order)]
    names = [[work.images.id_of(i) for i, _ in group] for group in groups]
    copies = [i for group in groups for i, _ in group[1:]]
    delete = [str(work.images.file_of(i) or work.images.id_of(i)) for i in copies]
    distances = [[d for _, d in group] for group in groups]
    unreadable = dict(work.images.unreadable)
    found = Deduplicated(names, distances, delete, len(rows), unreadable, tuple(files.values()))
    _write(files, found, work)
    return found


def _write(files: Mapping[str, Path], found: Deduplicated, work: Work) -> None:
    """The page and the list, where they were asked for."""
    if "--out" in files:
        write_atomic(files["--out"], _page(found, work).encode())
    if "--list-to" in files:  # a line is a file: a name with a line break would be two others
        lines = (os.fsencode(f"{file}\n") for file in found.delete if "\n" not in file)
        write_atomic(files["--list-to"], b"".join(lines))


def _refuse_images(files: Mapping[str, Path], images: ImageSet) -> None:
    """Refuse to write over one of the images."""
    there = {os.path.realpath(path): name for name, path in files.items() if path.exists()}
    for file in (images.file_of(i) for i in range(len(images) if there else 0)):
        if file is not None and (name := there.get(os.path.realpath(file))):
            raise ConfigError(f"{name}: '{files[name]}' is one of the images. Choose another name.")


def _looked_at(work: Work) -> tuple[Tensor, list[Tensor], Tensor, list[int]]:
    """Features (N, D), thumbnails and shapes (N, 2) of the images that can be read, and their positions."""
    features, thumbnails, shapes, rows = [], [], [], []
    work.trained.backbone.to(work.device)
    with Progress(len(work.images), "image") as progress:
        for start in range(0, len(work.images), work.batch_size):
            index = range(start, min(start + work.batch_size, len(work.images)))
            pixels = work.images.fetch(index)
            bad = {i for i, _ in pixels.unreadable}
            kept = [place for place, i in enumerate(index) if i not in bad]
            features.append(work.features(pixels).float().cpu()[kept])
            images = [pixels.image(place) for place in kept]
            thumbnails += list(map(thumbnail, images))
            shapes += [list(image.shape[1:]) for image in images]
            rows += [index[place] for place in kept]
            progress.update(len(index))
    if not rows:
        raise DataError(f"data: none of the {len(work.images)} images in {work.data} can be read.")
    return torch.cat(features), thumbnails, torch.tensor(shapes), rows


def _copies(features: Tensor, thumbnails: list[Tensor], shapes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pairs of positions (P, 2) that are copies, and how far they are apart (P,)."""
    count = len(thumbnails)
    first = torch.arange(count).repeat_interleave(min(NEAREST + 1, count))
    found = [nearest(of, of, NEAREST + 1, device)[1].flatten() for of in (features, signatures(thumbnails))]
    pairs = torch.stack([first.repeat(2), torch.cat(found)], 1).sort(1).values
    pairs = torch.unique(pairs, dim=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    apart = differences(thumbnails, shapes, *pairs.T)
    return pairs[apart <= LIMIT], apart[apart <= LIMIT]


def _order(images: ImageSet, rows: list[int], shapes: Tensor, pairs: Tensor) -> dict[int, tuple[int, int, int]]:
    """By which the images in pairs are kept, the least first."""
    order = {}
    for i in torch.unique(pairs).tolist():
        file = images.file_of(rows[i])
        side, size = int(shapes[i].min()), 0
        if file is not None:  # the pixels may have been reduced
            content = file.read_bytes()
            side, size = image_header(content)[1], len(content)
        order[i] = (-side, -size, i)
    return order


def _groups(
    pairs: Tensor, apart: Tensor, compare: Callable[[Tensor, Tensor], Tensor], order: dict[int, tuple[int, int, int]]
) -> list[Group]:
    """Each image to keep with its copies: all of them are compared with it, and what is none stays for other groups."""
    near: dict[int, set[int]] = {i: set() for i in order}
    for i, j in pairs.tolist():
        near[i].add(j)
        near[j].add(i)
    known = {(i, j): d for (i, j), d in zip(pairs.tolist(), apart.tolist(), strict=True)}
    groups, left = [], set(near)
    for keep in sorted(near, key=order.__getitem__):
        others = sorted(_reached(keep, near, left) - {keep}) if keep in left else []
        new = [i for i in others if (min(i, keep), max(i, keep)) not in known]
        if new:
            distances = compare(torch.full((len(new),), keep), torch.tensor(new))
            known |= {(min(i, keep), max(i, keep)): d for i, d in zip(new, distances.tolist(), strict=True)}
        copies = [(i, d) for i in others if (d := known[min(i, keep), max(i, keep)]) <= LIMIT]
        if copies:
            groups.append([(keep, 0.0), *sorted(copies, key=lambda copy: order[copy[0]])])
        left -= {keep, *(i for i, _ in copies)}
    return groups


def _reached(start: int, near: Mapping[int, set[int]], left: set[int]) -> set[int]:
    """The positions among those left that a chain of copies leads to."""
    seen, ends = {start}, [start]
    while ends:
        more = (near[ends.pop()] & left) - seen
        seen |= more
        ends += more
    return seen


def _page(found: Deduplicated, work: Work) -> str:
    """Each group: the image to keep beside its copies."""
    groups = found.groups[:ON_A_PAGE]
    shown = pictures_of(work.images, [name for group in groups for name in group], work.data)
    rows = []
    for number, (group, apart) in enumerate(zip(groups, found.differences, strict=False), 1):
        captions = [group[0], *(f"{d:.2f}  {name}" for name, d in zip(group[1:], apart[1:], strict=True))]
        pictures = [captioned(shown[name], caption) for name, caption in zip(group, captions, strict=True)]
        rows.append([str(number), *pictures])
    most = max(map(len, rows), default=2)
    of = f"The first {len(groups)} of {len(found.groups)} groups. " if len(found.groups) > len(groups) else ""
    said = f"{of}{len(found.delete)} near copies among {found.images} images of {work.data}, with their differences."
    text = tag("p", said, channel_note(work.images.channels), class_="quiet")
    columns = ["", "keep", *(f"copy {n}" for n in range(1, most - 1))]
    full = [[*row, *[""] * (most - len(row))] for row in rows]
    return page(
        "Near copies",
        tag("header", tag("h1", "Near copies")),
        section("Groups", text, table(columns, full, kind="pictures")),
    )
