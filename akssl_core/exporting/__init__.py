"""A trained backbone for other libraries: written, loaded again by a fresh process, and compared."""

from __future__ import annotations

import copy
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..config.schema import user_path
from ..data import Preprocess
from ..errors import ConfigError, PluginError, did_you_mean
from ..plugins.installed import version
from ..plugins.manager import Plugins, installed
from ..rundir.files import refuse_file, write_atomic
from ..rundir.folder import EXPORTED
from .backbone_file import CLASSIFIER_FORMAT, file_of, kind_of, load_backbone, read_backbone_file
from .classifier import Classifier, load_classifier
from .formats import FORMATS, IMAGES, TOLERANCE, ExportFailed, Format, Loader, compare, here, with_texts
from .int8 import Quantised, quantise, session, source_of

__all__ = ["ExportFailed", "Exported", "export", "found_again", "refuse_missing"]

KIND = "akssl-export-1"


@dataclass(frozen=True, slots=True)
class Exported:
    """A backbone in another library's format, found to give the same features there."""

    path: Path
    """The file."""
    to: str
    """The format's name."""
    snippet: str
    """Python code that loads the file and computes features."""
    difference: float
    """The largest one between the features (N, D) of that code and those of `load_backbone`."""
    tolerance: float
    """The difference that is allowed for features up to 1."""
    images: int
    """How many images were compared."""
    preprocess: Preprocess
    """How the network is fed."""
    metadata: Mapping[str, str]
    """The texts in the file's header."""
    quantised: Quantised | None = None
    """Of a file in 8 bits: what that saves and costs. `difference` is that of the float file which it was made of."""

    @property
    def text(self) -> str:
        """Where it is, how it was proved, and how to load it: what `akssl export` prints."""
        mean, std = (
            json.dumps([round(value, 4) for value in of]) for of in (self.preprocess.mean, self.preprocess.std)
        )
        proof = f"features of {self.images} images differ by at most {self.difference:.2g} (allowed {self.tolerance:g})"
        lines = [f"{self.path}: {self.to}, {self.path.stat().st_size / 1e6:.1f} MB; {proof}"]
        if self.quantised is not None:
            lines = [f"{self.path}: {self.to}, {self.quantised.text}", f"Before it was quantised, {proof}"]
        lines += [f"Images: {self.preprocess.rule}; mean {mean}, std {std}", "Load it:"]
        return "\n".join([*lines, *(f"  {line}" for line in self.snippet.splitlines())])

    def record(self) -> dict[str, Any]:
        """As plain values, fit for JSON."""
        names = ("to", "snippet", "difference", "tolerance", "images")
        quantised = None if self.quantised is None else self.quantised.record()
        own = {"preprocess": self.preprocess.to_dict(), "bytes": self.path.stat().st_size, "quantised": quantised}
        return {"path": str(self.path), **{name: getattr(self, name) for name in names}, **own}


def export(
    run_dir: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    module: nn.Module | None = None,
    int8: bool = False,
    overwrite: bool = False,
    plugins: Plugins | None = None,
) -> Exported:
    """Write the backbone of a run, or a classifier, for another library, and prove the file there.

    A fresh process loads the file by the code that `snippet` shows and computes features of a few images; they must
    be those of `load_backbone` to 1e-4. The file's header holds that difference, the code and the preprocessing.

    Args:
        run_dir: a run folder, its `backbone.safetensors`, or the file of a classifier, whose outputs are probabilities.
        to: "safetensors", "torchvision", "timm" or "onnx".
        out: the file to write. Default: one in the run folder, named after the format.
        module: your own network, where the run trained one.
        int8: of ONNX: with weights and activations in 8 bits, a quarter of the size; what that costs in accuracy is
            measured on images of the run, which must be there.
        overwrite: replace a file that is there.
        plugins: another plugin manager than the process-wide one.

    Raises:
        ConfigError: an unknown format, one that this backbone has no counterpart in, or a package is missing.
        RunDirError: the folder holds no finished run.
        ExportFailed: the features differ.
    """
    plugins = plugins or installed()
    chosen = _format(to)
    source = user_path(run_dir)
    kind = kind_of(file_of(source))
    if kind == CLASSIFIER_FORMAT and chosen.name != "onnx":
        raise ConfigError(f"to: {source} is a classifier, which is exported to onnx alone.")
    if int8 and (chosen.name != "onnx" or kind == CLASSIFIER_FORMAT):
        raise ConfigError("int8: is for backbones as onnx alone. Leave it out, or export a run with to='onnx'.")
    target = user_path(out) if out is not None else _usual(source, chosen, kind, int8=int8)
    _refuse_target(target, chosen, overwrite=overwrite)
    _, header, _ = read_backbone_file(file_of(source), kind)
    backbone = found_again(source, header, module, plugins)
    _refuse_without_counterpart(backbone, chosen)
    facts = _facts(chosen, header, backbone)
    file_with, smaller = chosen.make(backbone), None
    images = source_of(file_of(source).parent, backbone.image.size, plugins) if int8 else None
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / target.name
        write_atomic(draft, file_with({**header, **facts}))
        difference, largest = compare(backbone, draft, _load_again(chosen, backbone, module, plugins))
        if images is not None:
            small = draft.with_name("int8.onnx")
            smaller, file_with = quantise(backbone, draft, small, images), with_texts(small)
            compare(session(small, backbone), small, lambda file, shown: chosen.features(backbone, file, shown))
    code = chosen.snippet(backbone, target)
    metadata = {
        **(header if chosen.needs_akssl else {}),
        **facts,
        "max_difference": f"{difference:.3g}",
        "tolerance": f"{TOLERANCE:g}",
        "compared_images": str(IMAGES),
        "largest_feature": f"{largest:.3g}",
        "load": code,
        **({"int8": smaller.text} if smaller else {}),
    }
    write_atomic(target, file_with(metadata))
    assert backbone.preprocess is not None
    return Exported(target, chosen.name, code, difference, TOLERANCE, IMAGES, backbone.preprocess, metadata, smaller)


def _format(to: str) -> Format:
    """The format of this name, whose packages are there."""
    known = {one.name: one for one in FORMATS}
    found = known.get(str(to).strip().lower())
    if found is None:
        raise ConfigError(f"to: there is no format '{to}'.{did_you_mean(str(to), known)} Formats: {', '.join(known)}.")
    refuse_missing(found)
    return found


def refuse_missing(chosen: Format) -> None:
    """Refuse a format whose packages are not installed."""
    if missing := [name for name in chosen.packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"to: {chosen.name} needs {', '.join(missing)}, which this environment lacks. "
            "Install what all formats need: pip install 'akssl-core[export]'"
        )


def _usual(source: Path, chosen: Format, kind: str, *, int8: bool) -> Path:
    """Where the file goes if nobody says: beside the run's own, or beside the classifier under its name."""
    if kind == CLASSIFIER_FORMAT:
        return source.with_suffix(chosen.suffix)
    return (source if source.is_dir() else source.parent) / EXPORTED["int8" if int8 else chosen.name]


def _refuse_target(target: Path, chosen: Format, *, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written."""
    if target.suffix != chosen.suffix:
        raise ConfigError(f"out: {target} must end in {chosen.suffix}, as files for {chosen.name} do.")
    refuse_file(target, overwrite=overwrite, name="out")


def _refuse_without_counterpart(backbone: Backbone, chosen: Format) -> None:
    """Refuse a network that the other library does not have."""
    if chosen.takes(backbone):
        return
    working = ", ".join(one.name for one in FORMATS if one.takes(backbone))
    name = "your own network" if backbone.name == "custom" else backbone.name
    raise ConfigError(
        f"to: {name} has no counterpart in {chosen.name} with these settings. Formats that work: {working}."
    )


def found_again(source: Path, header: Mapping[str, str], module: nn.Module | None, plugins: Plugins) -> Backbone:
    """The trained backbone; of one's own network, only where it was given."""
    own = json.loads(header["backbone"]).get("type")
    if own and module is None:
        raise ConfigError(
            f"this backbone is your own {own}, which is built by your code alone. safetensors and onnx work from "
            f"Python: akssl_core.export({str(source)!r}, to='onnx', module={own}(...))."
        )
    load = load_classifier if header["format"] == CLASSIFIER_FORMAT else load_backbone
    return load(source, module=module, plugins=plugins)


def _facts(chosen: Format, header: Mapping[str, str], backbone: Backbone) -> dict[str, str]:
    """The entries of the file's header: every value is a text, nested ones are JSON."""
    assert backbone.preprocess is not None
    return {
        "export": KIND,
        "to": chosen.name,
        "method": header.get("method", "unknown"),
        "architecture": header["backbone"],
        "feature_size": str(backbone.embed_dim),
        "preprocess": json.dumps(backbone.preprocess.to_dict()),
        "preprocess_rule": backbone.preprocess.rule,
        **({"classes": json.dumps(backbone.classes)} if isinstance(backbone, Classifier) else {}),
        "written_with": json.dumps({name: version(name) for name in ("torch", *chosen.packages)}),
    }


def _load_again(chosen: Format, backbone: Backbone, module: nn.Module | None, plugins: Plugins) -> Loader:
    """How the draft is loaded: by a fresh process, and here where that one cannot build the network.

    It knows no network of one's own and no plugin that is a single file, so akssl there cannot build them.
    """
    if chosen.needs_akssl and (module is not None or not _known_elsewhere(backbone)):
        return lambda draft, pictures: here(load_backbone(draft, module=_emptied(module), plugins=plugins), pictures)
    return lambda draft, pictures: chosen.features(backbone, draft, pictures)


def _known_elsewhere(backbone: Backbone) -> bool:
    """Whether a fresh process finds this network among what is installed."""
    try:
        Plugins().get("backbone", backbone.name)
    except PluginError:
        return False
    return True


def _emptied(module: nn.Module | None) -> nn.Module | None:
    """The user's network with weights of zero, so that only those of the file can give the same features."""
    again = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in again.parameters() if again is not None else ():
            tensor.zero_()
    return again
