"""From a run to a folder that other libraries load by its path, with a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backbone import Backbone
from ..config.schema import user_path
from ..errors import ConfigError
from ..exporting import found_again, refuse_missing
from ..exporting.backbone_file import PUBLISHED, file_of, read_backbone_file
from ..exporting.folder import MARK, MODES, Folder, config_of, origins, texts_of, to_prove_with
from ..exporting.formats import IMAGES, TOLERANCE, compare
from ..plugins.manager import Plugins, installed
from ..reporting.card import card
from ..reporting.comparison import Summary
from ..rundir.files import explain_write_errors, json_bytes, read_texts, sync_folder, write_flushed
from ..rundir.folder import RunDir

CONFIG, CARD = "config.json", "README.md"


@dataclass(frozen=True, slots=True)
class PublishedFolder:
    """A folder that timm and transformers load, found to give the features of the run's backbone in timm."""

    path: Path
    """The folder."""
    architecture: str
    """The network's name in timm."""
    snippet: str
    """Python code that loads the folder by timm and computes features of Pillow images."""
    difference: float
    """The largest one between the features (N, D) of that code and those of `load_backbone`."""
    tolerance: float
    """The difference that is allowed for features up to 1."""
    images: int
    """How many images were compared."""

    @property
    def text(self) -> str:
        """Where it is, how it was proved, and how to load it: what `akssl publish` prints."""
        megabytes = (self.path / PUBLISHED).stat().st_size / 1e6
        proof = f"features of {self.images} images differ by at most {self.difference:.2g} (allowed {self.tolerance:g})"
        lines = [f"{self.path}: {self.architecture} of timm, {megabytes:.1f} MB; {proof}"]
        lines += [f"Read {CARD} and name a licence in it before anybody else gets the folder. Load it:"]
        return "\n".join([*lines, *(f"  {line}" for line in self.snippet.splitlines())])

    def record(self) -> dict[str, Any]:
        """As plain values, fit for JSON."""
        own = {name: getattr(self, name) for name in ("architecture", "snippet", "difference", "tolerance", "images")}
        return {"path": str(self.path), "files": [CARD, CONFIG, PUBLISHED], **own}


def publish(
    run: str | Path, to: str | Path, *, overwrite: bool = False, plugins: Plugins | None = None
) -> PublishedFolder:
    """Write the backbone of a run as a folder that timm and transformers load, with a model card.

    The folder holds `model.safetensors`, `config.json` and `README.md`. Before it gets its name, a fresh process loads
    it with timm alone, prepares a few images by timm's own transform and computes their features, which must be those
    of the run's backbone to 1e-4. Folders of this machine are named nowhere in it.

    Args:
        run: the folder of a run that has ended.
        to: the folder to write; it must not exist, or be empty.
        overwrite: replace what an earlier call has written there.
        plugins: another plugin manager than the process-wide one.

    Raises:
        RunDirError: there is no such run, or it has not finished.
        ConfigError: timm has no such network or is not installed, or nothing can be written there.
        ExportFailed: the features differ.
    """
    plugins, source, target, form = plugins or installed(), user_path(run), user_path(to), Folder()
    refuse_missing(form)
    RunDir.open(source)
    _, header, known = read_backbone_file(file_of(source))
    _refuse_target(target, overwrite=overwrite)
    backbone = found_again(source, header, None, plugins)
    if not form.takes(backbone):
        raise ConfigError(
            f"publish: timm builds no network such as this {backbone.name} by name, so nothing that is not akssl could "
            f"load the folder. akssl export {source} --to FORMAT writes its weights: safetensors, onnx, and what else "
            f"it names."
        )
    config, learned_from = config_of(backbone), origins(header)
    with _appearing(target, overwrite=overwrite) as draft:
        texts = texts_of(backbone, header)
        write_flushed(draft / PUBLISHED, form.make(backbone)(texts))
        write_flushed(draft / CONFIG, json_bytes(config))
        pictures = to_prove_with(backbone)
        difference, _ = compare(backbone, draft, lambda file, shown: form.features(backbone, file, shown), pictures)
        loads = _loads(form, backbone, target.name, akssl=bool(texts))
        summary = Summary.read(source, source.name)
        text = card(summary, backbone.name, backbone.embed_dim, known.preprocess, learned_from, loads)
        write_flushed(draft / CARD, text.encode("utf-8", "backslashreplace"))
    return PublishedFolder(
        target, config["architecture"], form.snippet(backbone, target), difference, TOLERANCE, IMAGES
    )


def _loads(form: Folder, backbone: Backbone, name: str, *, akssl: bool) -> dict[str, str]:
    """Code that loads a folder of this name, by library."""
    if backbone.image.channels in MODES:
        more, given = (
            [f"prepare = AutoImageProcessor.from_pretrained({name!r})"],
            '**prepare(images, return_tensors="pt")',
        )
    else:
        more, given = [], "pixel_values=images"
    transformers = [
        "from transformers import AutoImageProcessor, AutoModel",
        f"model = AutoModel.from_pretrained({name!r}).eval()",
        *more,
        f"features = model({given}).pooler_output",
    ]
    own = [
        "import akssl_core",
        f"backbone = akssl_core.load_backbone({name!r})",
        "features = backbone(backbone.preprocess(images))",
    ]
    lines = {
        "timm": [form.snippet(backbone, Path(name))],
        "transformers": transformers,
        **({"akssl": own} if akssl else {}),
    }
    return {library: "\n".join(code) for library, code in lines.items()}


def _refuse_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot or must not be written, before anything is computed."""
    if not os.path.isdir(target.parent):
        raise ConfigError(f"--to: there is no folder '{target.parent}' to write {target.name} to. Make it first.")
    if os.path.lexists(target) and not os.path.isdir(target):
        raise ConfigError(f"--to: '{target}' is a file; expected a folder. Choose another name.")
    if os.path.isdir(target):
        _refuse_contents(target, target, overwrite=overwrite)
    try:
        draft = _draft(target)
        draft.mkdir()
        draft.rmdir()
    except OSError as error:
        raise ConfigError(f"--to: cannot write {target}: {error.strerror}. Choose another place.") from error


def _refuse_contents(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Refuse to replace a folder that holds anything but what an earlier publish has written there."""
    there = set(os.listdir(folder))
    if others := sorted(there - {PUBLISHED, CONFIG, CARD}):
        raise ConfigError(f"--to: '{target}' holds other files ('{others[0]}'). Choose another name.")
    if there and not overwrite:
        raise ConfigError(f"--to: '{target}' exists already. Replace it with --overwrite, or choose another name.")
    files = all(os.path.isfile(folder / name) for name in there)
    if there and not (files and PUBLISHED in there and MARK.items() <= read_texts(folder / PUBLISHED).items()):
        raise ConfigError(f"--to: '{target}' was not written by akssl publish. Choose another name.")


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.part")


@contextmanager
def _appearing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside its target to fill; it takes the target's place at the end, and is removed on an error.

    What lies there is looked at again once it has been moved aside, for somebody may have put a file there meanwhile.
    """
    target = target.resolve()
    draft, old = _draft(target), target.with_name(f".{target.name}.{os.getpid()}.old")
    with explain_write_errors(target):
        try:
            draft.mkdir()
            yield draft
            sync_folder(draft)
            if target.exists():
                target.replace(old)
            try:
                if old.exists():
                    _refuse_contents(old, target, overwrite=overwrite)
                draft.replace(target)
            except BaseException:
                if old.exists():
                    old.replace(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
