"""Weights of any origin for a network: each tensor of the file and of the network is accounted for.

A network says as data how other libraries spell its keys (`Keys`); here keys are matched, tensors of another size are
adapted, and what belongs to something else (a classifier, the other network of a momentum pair) is left out by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError, did_you_mean, visible
from .base import Backbone, Keys

DEEP = 5  # names before the network's own keys, at most: state_dict.module.student.backbone.
UNTRAINED = r"momentum|encoder_k|student|target|key_encoder"
"""Parts of names of the network of a pair that is not the product: MoCo's keys, BYOL's target, DINO's student."""
HEADS = (
    "fc|head|heads|head_dist|classifier|linear|mlp_head|lm_head|pre_logits|pooler|projector|projection|projection_head|"
    "proj_head|contrastive_head|predictor|prediction|prediction_head|prototypes|last_layer|dino_head|ibot_head|g"
)
WORDS = r"(?:[A-Za-z_]\w*\.)*"
LEFT_OUT = {
    "a head": rf"{WORDS}(?:{HEADS})(?:\.|$)",
    "the other network of a pair": rf"{WORDS}?[a-z_]*(?:{UNTRAINED}|teacher|ema)[a-z_]*\.",
    "a decoder": rf"{WORDS}decoder\w*(?:\.|$)",
    "state of a method": rf"{WORDS}(?:queue\w*|center|\w*loss|\w*mask_token|temperature|logit_scale)(?:\.|$)",
}  # by where a name begins; what comes after a number is inside a network and never left out
LARGEST = 4096  # side, channels or width of a first convolution that is adapted
COUNTER = "num_batches_tracked"


class Several(ConfigError):
    """A file of several networks that fit."""


@dataclass(frozen=True)
class Account:
    """What became of each tensor; names are those of the network but for `left_out`, where they are the file's."""

    loaded: tuple[str, ...]
    """Names of those that are as they were in the file."""
    adapted: Mapping[str, str] = field(default_factory=dict)
    """How, by name."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why, by name in the file."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """What stands in their place, by name."""

    def lines(self) -> Iterator[str]:
        """The table, a line for each fate; like names are told by one of them."""
        yield f"{len(self.loaded)} tensors loaded as they are, 0 unaccounted for"
        yield from (f"adapted: {name}: {how}" for name, how in self.adapted.items())
        for title, table in (("left out", self.left_out), ("missing", self.missing)):
            for why in dict.fromkeys(table.values()):
                names = [name for name, reason in table.items() if reason == why]
                yield f"{title}, {why}: {_some(names)}"


def load_weights(
    tensors: Mapping[str, Tensor], backbone: Backbone, *, prefix: str | None = None, who: str = "start"
) -> Account:
    """Fill a backbone; `prefix` is where the keys of the network begin in the file, null: found.

    `who` is the setting that named the weights: messages begin with it.

    Raises:
        ConfigError: a tensor of the file or of the network is unaccounted for, or has a shape that cannot be adapted.
    """
    wanted = backbone.export_state()  # the tensors themselves
    try:
        state, account = fit(tensors, wanted, backbone.keys, prefix=prefix)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from error
    with torch.no_grad():
        for name, tensor in state.items():
            wanted[name].copy_(tensor)
    return account


def fit(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], keys: Keys, *, prefix: str | None = None
) -> tuple[dict[str, Tensor], Account]:
    """The tensors of a file in the names and shapes of a network, and what became of each; see `load_weights`."""
    if prefix:
        prefix = whole_prefix(prefix, tensors)
    found = _named(tensors, wanted, keys, prefix)
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    strays = [name for name in tensors if found.get(name, "").partition("#")[0] not in wanted]
    for name, key in found.items():
        whole, _, part = key.partition("#")
        if whole in wanted:
            parts.setdefault(whole, []).append((part, tensors[name]))
    left_out = {name: why for name in strays if (why := _reason(name, prefix))}
    missing = {name: "begins at 0" for name in wanted.keys() - parts.keys() if name.endswith(COUNTER)}
    lost = sorted(wanted.keys() - parts.keys() - missing.keys())
    _refuse(sorted(set(strays) - left_out.keys()), lost, len(wanted))
    state = {name: _joined(name, some) for name, some in parts.items()}
    how: dict[str, str] = {}
    fold_class_position(state, wanted, keys, how)
    for name in state:
        if state[name].shape != wanted[name].shape:
            state[name], how[name] = _adapted(name, state[name], wanted[name], keys)
    return state, Account(tuple(name for name in wanted if name in state and name not in how), how, left_out, missing)


# -- names ----------------------------------------------------------------------------------------
def _named(names: Collection[str], wanted: Collection[str], keys: Keys, prefix: str | None) -> dict[str, str]:
    """The names of a file that begin with the prefix, each with the key that it means."""
    ways = []
    for start in [prefix] if prefix is not None else _prefixes(names, len(wanted)):
        for dialect in ((), *keys.dialects):
            meant = {name: spelled(name[len(start) :], dialect) for name in names if name.startswith(start)}
            hits = len({key.partition("#")[0] for key in meant.values()} & set(wanted))
            ways.append(((hits, re.search(UNTRAINED, start) is None), start, meant))
    if not ways:
        return {}
    best = max(rank for rank, _, _ in ways)
    starts = dict.fromkeys(start for rank, start, _ in ways if rank == best)
    if len(starts) > 1 and best[0] > len(wanted) / 2:
        raise Several(
            f"the file holds {len(starts)} networks that fit, whose keys begin with {', '.join(map(repr, starts))}. "
            f"Take a file of one, or name it where a run begins: start.prefix."
        )
    return next(meant for rank, _, meant in ways if rank == best)


def whole_prefix(prefix: str, names: Collection[str]) -> str:
    """A prefix that some names begin with, in whole words: with the dot behind the last of them.

    Raises:
        ConfigError: none begins with it.
    """
    whole = f"{prefix.removesuffix('.')}."
    if not any(name.startswith(whole) for name in names):
        has = sorted(filter(None, _prefixes(names, len(names) // 4)), key=lambda start: start.count("."))
        begin = f"; they begin with {visible(', '.join(map(repr, has[:5])))}" if has else ""
        near = did_you_mean(prefix, has)
        raise ConfigError(f"no tensor of the file begins with the prefix '{visible(prefix)}'{begin}.{near}")
    return whole


def spelled(name: str, dialect: Sequence[tuple[str, str]]) -> str:
    """A key of another library as this network spells it."""
    for pattern, here in dialect:
        name = re.sub(pattern, here, name)
    return name


def _prefixes(names: Collection[str], size: int) -> list[str]:
    """All beginnings of names, in whole words, that at least half as many share as a network has tensors."""
    counts = {"": len(names)}
    for name in names:
        words = name.split(".")[:-1][:DEEP]
        for end in range(1, len(words) + 1):
            start = ".".join(words[:end]) + "."
            counts[start] = counts.get(start, 0) + 1
    return [start for start, count in counts.items() if not start or count >= size / 2]


def _reason(name: str, prefix: str | None) -> str | None:
    """Why a tensor that the network has no place for is left out; None: nothing says that it may be."""
    if prefix is not None and not name.startswith(prefix):
        return "outside of start.prefix"
    return next((why for why, pattern in LEFT_OUT.items() if re.match(pattern, name)), None)


def _refuse(strays: Sequence[str], lost: Sequence[str], size: int) -> None:
    """Refuse what is unaccounted for."""
    if not strays and not lost:
        return
    said, near = [], did_you_mean(strays[0], lost) if strays else ""
    if lost:
        said.append(f"{len(lost)} of {size} tensors of the network have none, '{lost[0]}' first")
    if strays:
        said.append(f"{len(strays)} tensors of the file have no place, '{visible(strays[0]):.80}' first")
    raise ConfigError(f"the weights are not those of this backbone: {'; '.join(said)}.{near}")


def _some(names: Sequence[str]) -> str:
    """A few names and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return visible(", ".join(names[:3])) + more


# -- shapes ---------------------------------------------------------------------------------------
def _joined(name: str, parts: Sequence[tuple[str, Tensor]]) -> Tensor:
    """One tensor of the parts `#0`, `#1`, ... along the first side."""
    tensors = [tensor for _, tensor in sorted(parts, key=lambda pair: pair[0])]
    if kinds := {tensor.dtype for tensor in tensors if not tensor.is_floating_point() and not name.endswith(COUNTER)}:
        raise ConfigError(f"the weights of '{name}' are {kinds.pop()}. Expected floating-point numbers.")
    if any(not tensor.to(torch.float32).isfinite().all() for tensor in tensors):
        raise ConfigError(f"the weights of '{name}' are not finite numbers. Take another file.")
    if len(tensors) > 1 and len({part for part, _ in parts}) < len(parts):
        raise ConfigError(f"several tensors of the file mean '{name}'. Name one network: start.prefix.")
    if any(tensor.shape[1:] != tensors[0].shape[1:] for tensor in tensors):
        raise ConfigError(f"the parts of '{name}' do not fit together. Take another file.")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _adapted(name: str, tensor: Tensor, wanted: Tensor, keys: Keys) -> tuple[Tensor, str]:
    """A tensor in the shape of the network, and how it came to it."""
    have, need = tuple(tensor.shape), tuple(wanted.shape)
    if (
        name == keys.first
        and len(have) == len(need) == 4
        and have[0] == need[0]
        and 0 < min(have) <= max(have) <= LARGEST
    ):
        said, kernel = [], tensor.float()
        if have[1] != need[1]:
            kernel = for_channels(kernel, need[1])
            said.append(f"{have[1]} -> {need[1]} channels, each the mean")
        if have[2:] != need[2:]:
            kernel = resized(kernel, (need[2], need[3]))
            said.append(f"{have[2]} x {have[3]} -> {need[2]} x {need[3]} px by pseudo-inverse")
        return kernel, f"{', '.join(said)}; response to gray as before (to {gray_error(tensor, kernel):.0e})"
    if name == keys.positions and len(have) == len(need) == 3 and have[2] == need[2]:
        found = for_grid(tensor.float(), keys)
        if found is not None and found[0].shape == wanted.shape:
            return found
    raise ConfigError(
        f"'{name}' is of shape {have!s:.60} in the file, expected {need!s:.60}. Choose the backbone of the file."
    )


def for_channels(kernel: Tensor, channels: int) -> Tensor:
    """A first convolution (D, C, h, w) for other channels: each is sum / channels, so equal ones respond as before."""
    result: Tensor = kernel.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    return result


def resized(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """A convolution (D, C, h, w) that responds to resized images as before (FlexiViT, arXiv 2212.08013, eq. 4).

    Where it gets smaller this cannot hold for all images; a constant is added so that it holds for constant ones.
    """
    old = (kernel.shape[2], kernel.shape[3])
    rows, columns = (_resizing(a, b) for a, b in zip(old, size, strict=True))
    inverse = torch.linalg.pinv(torch.kron(rows, columns).T)  # (new, old) pixels
    result: Tensor = (kernel.double().flatten(2) @ inverse.T).reshape(*kernel.shape[:2], *size)
    change = kernel.double().sum((2, 3), keepdim=True) - result.sum((2, 3), keepdim=True)
    return (result + change / (size[0] * size[1])).float()


def _resizing(old: int, new: int) -> Tensor:
    """Bicubic resizing of one side as a matrix (new, old), smoothed where it shrinks."""
    identity = torch.eye(old, dtype=torch.double)[None, None]
    return F.interpolate(identity, size=(new, old), mode="bicubic", antialias=True, align_corners=False)[0, 0]


def gray_error(before: Tensor, after: Tensor) -> float:
    """The largest change of the response to a constant gray image, as a share of the largest response."""
    old, new = (kernel.double().sum((1, 2, 3)) for kernel in (before, after))
    return float((old - new).abs().max() / old.abs().max().clamp(min=1e-12))


def for_grid(positions: Tensor, keys: Keys) -> tuple[Tensor, str] | None:
    """Positions (1, n + h w, D) for the network's grid, the first `n` untouched; None: they are no square grid."""
    side = math.isqrt(positions.shape[1])
    first, grid = positions.shape[1] - side * side, positions[:, positions.shape[1] - side * side :]
    if first != keys.before or keys.grid is None or side == 0:
        return None
    square = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    new = F.interpolate(square, size=keys.grid, mode="bicubic", antialias=True, align_corners=False)
    moved = torch.cat([positions[:, :first], new.flatten(2).transpose(1, 2)], 1)
    return moved, f"{side} x {side} -> {keys.grid[0]} x {keys.grid[1]} patches, bicubic"


def fold_class_position(
    state: dict[str, Tensor], wanted: Mapping[str, Tensor], keys: Keys, how: dict[str, str]
) -> None:
    """Where the file has a position for the class token and the network none: it is added to the token."""
    positions, token = state.get(keys.positions), state.get(keys.class_token)
    if (
        positions is None
        or token is None
        or keys.before
        or positions.ndim != 3
        or token.shape[2:] != positions.shape[2:]
    ):
        return
    if math.isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1:
        state[keys.class_token], state[keys.positions] = token + positions[:, :1], positions[:, 1:]
        how[keys.class_token] = "the position of the class token was added"
