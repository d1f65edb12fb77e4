"""The one place that reads a pickle: torch's weights-only reader makes a .safetensors file of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.schema import user_path
from ..errors import ConfigError, shown
from ..rundir.files import refuse_file, tensor_bytes, write_atomic


@dataclass(frozen=True, slots=True)
class Converted:
    """A file that was written."""

    path: Path
    """The file."""
    tensors: int
    """How many it holds."""
    left_out: tuple[str, ...]
    """What is no part of a network: names of what was no tensor, and of states of optimizers."""

    @property
    def text(self) -> str:
        """What `akssl convert` prints."""
        more = f"; left out: {', '.join(self.left_out[:5])}" if self.left_out else ""
        return f"{self.path}: {self.tensors} tensors{more}\nBegin a run from it: akssl run METHOD --start {self.path}"


def convert(file: str | Path, out: str | Path, *, overwrite: bool = False) -> Converted:
    """Write the tensors of a file of torch (`.pth`, `.pt`, `.ckpt`, `.bin`) to a `.safetensors` file.

    Tables within tables become names with dots: `state_dict.conv1.weight`. Only tensors and plain values are read. The
    state of an optimizer, which a training checkpoint has beside its network, is left out.

    Raises:
        ConfigError: there is no such file, it holds other things or no tensor, or `out` cannot be written.
    """
    source, target = user_path(file), user_path(out)
    if not source.is_file():
        what = "is no file" if source.exists() else "does not exist"
        raise ConfigError(f"convert: {shown(str(source))} {what}. Expected a file of tensors that torch has written.")
    if source.suffix == ".safetensors":
        raise ConfigError(f"convert: {shown(str(source))} is no pickle: --start takes a .safetensors file as it is.")
    if target.suffix != ".safetensors":
        raise ConfigError(f"--out: expected a name that ends in .safetensors, got {shown(str(target))}.")
    refuse_file(target, overwrite=overwrite)
    state = _read(source)
    try:
        pairs = list(_flat(state))
        tensors = {name: value.clone() for name, value in pairs if isinstance(value, Tensor) and name}
        content = tensor_bytes(tensors)
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, RecursionError) as error:
        raise ConfigError(
            f"convert: {source} holds what a .safetensors file cannot: {_first_line(error)} Expected dense tensors."
        ) from error
    names = [name for name, value in pairs if isinstance(value, Tensor)]
    if not tensors:
        raise ConfigError(f"convert: {source} holds no tensor by a name. Expected a state dict.")
    if twice := [name for name in tensors if names.count(name) > 1] or [
        name for name in names if name == "__metadata__"
    ]:
        raise ConfigError(f"convert: {source} holds a name that a .safetensors file cannot: {shown(twice[0])}.")
    write_atomic(target, content)
    return Converted(target, len(tensors), tuple(name for name, _ in pairs if name not in tensors))


def _read(source: Path) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file brings about in torch's reader
        other = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ConfigError(
            f"convert: {source} is damaged, or holds more than tensors and plain values "
            f"({other[1] if other else type(error).__name__}). Whoever made it, or trusts it, can save "
            "model.state_dict() alone, or torch.load(FILE, weights_only=False)['state_dict']."
        ) from error


def _first_line(error: BaseException) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0]:.200}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested tables by its dotted name; the state of an optimizer, as torch makes it, is one thing."""
    if isinstance(value, Mapping) and not {"state", "param_groups"} <= value.keys():
        for key, one in value.items():
            yield from _flat(one, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
