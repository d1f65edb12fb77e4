"""A teacher's features of some views of every image, computed once and kept in a file.

A crop, a mirrored or a recoloured image has other features than the whole one, so what is kept belongs to views: those
of the first epochs under one seed, which all runs with the file show again and again. Draws count, so the pixels are
the same whenever they are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from akssl_core import ConfigError, Shown, dist
from akssl_core.nn import Frozen

from .teacher import Stored

FORMAT = "akssl-distill-targets-1"
SEED = 0  # of the views in every file, whatever the seed of a run
TRIED = 8  # entries that are compared with the teacher where it is at hand
APART = 1e-2  # cosine distance from which on they are of another image or view


def read(path: Path) -> Frozen:
    """The features in a file, in place of a teacher.

    Raises:
        ConfigError: it is none of ours, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            known = file.metadata() or {}
            if known.get("format") != FORMAT:
                raise ConfigError(f"method.targets: {path} was not written by distill: its header says nothing of it.")
            about = {**json.loads(known["teacher"]), "targets": str(path)}
            return _frozen(file.get_tensor("targets"), about, json.loads(known["identity"]))
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        raise ConfigError(f"method.targets: {path} cannot be read: {error}. Delete it to have it made anew.") from error


def _frozen(rows: Tensor, about: Mapping[str, str], identity: Mapping[str, Any]) -> Frozen:
    """Features in place of a teacher; what their pixels follow from stands beside them."""
    told = {name: text for name, text in about.items() if name != "sha256"}
    teacher = about["sha256"]
    return Frozen(Stored(rows, teacher, identity), {**told, "sha256 of the teacher": teacher})


def make(path: Path, views: int, teacher: Frozen, shown: Shown) -> Frozen:
    """Features of every image in so many views by a teacher, also written to a file; all processes take part."""
    rows = torch.stack([_of_view(number, teacher, shown) for number in range(views)])
    identity = plain(shown.identity())
    if dist.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        header = {"format": FORMAT, "teacher": json.dumps(dict(teacher.about)), "identity": json.dumps(identity)}
        save_file({"targets": rows}, draft, header)
        os.replace(draft, path)
    return _frozen(rows, {**teacher.about, "targets": str(path)}, identity)


def _of_view(number: int, teacher: Frozen, shown: Shown) -> Tensor:
    """Features (images, D) on the CPU of one view of every image; each process encodes its share."""
    rows = []
    together = shown.batch_size * dist.world()
    for start in range(0, shown.images, together):
        first = start + dist.rank() * shown.batch_size
        index = torch.arange(first, first + shown.batch_size).clamp(max=shown.images - 1)
        (images,) = shown.views(index, SEED, number)["global"]
        rows.append(dist.gather(teacher(images, index, number).pooled.float()).cpu())
    return torch.cat(rows)[: shown.images]


def plain(identity: Mapping[str, Any]) -> Any:
    """The same as it is after a way through JSON."""
    return json.loads(json.dumps(identity))


def refuse_other(path: Path, stored: Stored, shown: Shown, views: int) -> None:
    """Refuse features of other images, of other views of them, or of fewer.

    Raises:
        ConfigError: with what differs.
    """
    cure = "Name another file, which is made anew, or go back to the settings of this one."
    have = len(stored.rows)
    if have != views:
        raise ConfigError(
            f"method.targets: {path} holds {have} views of each image, and target_views is {views}. {cure}"
        )
    now, then = plain(shown.identity()), stored.identity
    differing = [
        f"{room}.{name}: {then.get(room, {}).get(name)} there, {value} here"
        for room, table in now.items()
        for name, value in table.items()
        if then.get(room, {}).get(name) != value
    ]
    if differing or now.keys() != then.keys():
        raise ConfigError(f"method.targets: {path} is of other pixels than this run's: {'; '.join(differing)}. {cure}")


def refuse_untrue(path: Path, stored: Stored, teacher: Frozen, shown: Shown) -> None:
    """Compare a few features of a file with those that the teacher makes of the same pixels now.

    Raises:
        ConfigError: they are another teacher's, or of other pixels.
    """
    kept = stored.teacher
    if kept != teacher.about["sha256"]:
        raise ConfigError(
            f"method.targets: {path} is of a teacher with the SHA-256 {kept[:16]}..., and method.teacher has "
            f"{teacher.about['sha256'][:16]}.... Name another file, which is made anew."
        )
    generator = torch.Generator().manual_seed(SEED)
    index = torch.randint(shown.images, (TRIED,), generator=generator)
    number = int(torch.randint(len(stored.rows), (1,), generator=generator))
    (images,) = shown.views(index, SEED, number)["global"]
    found = teacher(images, index, number).pooled.float()
    apart = 1 - F.cosine_similarity(found, stored.rows[number, index.to(stored.rows.device)].to(found.device))
    if not float(apart.max()) <= APART:
        raise ConfigError(
            f"method.targets: {path} has other features of {int((apart > APART).sum())} of {TRIED} images than the "
            f"teacher has of them now. Delete it to have it made anew."
        )
