"""The model card of a run: Markdown that says what the network is, how it was trained and how good it was found."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import describe
from ..data import Preprocess
from ..errors import visible
from .comparison import Summary, number
from .records import score_tables

FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"|]+/)+")  # of an absolute path, whose last name stays
HEAD = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- transformers
- self-supervised-learning
---"""
NOT_FOR = """\
- It is no classifier: it gives features. Train a classifier on them with labelled images of your own, and judge it on
  images that it has not seen.
- Nothing is known of images unlike those that it was trained on: the scores hold for the data that they name alone.
- What is wrong or one-sided in those images may be in the features. Nobody has looked for it; do not decide about
  people, health or safety by them before you have."""


def card(
    run: Summary,
    backbone: str,
    size: int,
    preprocess: Preprocess,
    origins: Sequence[Mapping[str, str]],
    loads: Mapping[str, str],
) -> str:
    """The card of a run that has ended.

    Args:
        run: its files.
        backbone: the name of its network, whose features are `size` wide.
        size: of the features.
        preprocess: how the network is fed.
        origins: what it has learned from, as the file of the backbone says.
        loads: Python code that loads the folder, by the name of the library that it takes.
    """
    method = _plain(run.method)
    labels = "with labels" if run.files.manifest.get("trained_with_labels") else "without labels"
    parts = [HEAD, f"# {_plain(backbone)}, trained by {method}"]
    parts += [f"A network for images, trained {labels} by AKSSL: {size} features an image."]
    parts += [describe.markdown(["", ""], [*_facts(run, preprocess)])]
    parts += ["## Scores", *_scores(run)]
    parts += ["## Licence", _licence(origins)]
    parts += ["## Use"]
    for library, code in loads.items():
        parts += [f"With {library}:", f"```python\n{code}\n```"]
    parts += ["## What it is not for", NOT_FOR]
    return FOLDERS.sub("", "\n\n".join(parts)) + "\n"


def _facts(run: Summary, preprocess: Preprocess) -> list[list[str]]:
    """Names and values of what the run was."""
    about: Mapping[str, Any] = run.files.manifest.get("data", {})
    images, classes = about.get("images"), about.get("classes")
    seen, steps = run.cost.get("images_seen"), run.files.rows[-1]["step"] if run.files.rows else None
    mean, std = (", ".join(f"{value:.4g}" for value in of) for of in (preprocess.mean, preprocess.std))
    versions: Mapping[str, Any] = run.files.manifest.get("versions", {})
    facts = {
        "method": run.method,
        "trained on": _data(run)
        + (f", {images} images" if images else "")
        + (f" of {classes} classes" if classes else ""),
        "images seen": f"{seen:.0f} in {steps} steps" if seen else None,
        "began from": _name(run.settings.get("start.source")) or "random weights",
        "how images are fed": f"{preprocess.rule}; mean {mean}; std {std}",
        "seed": run.settings.get("seed"),
        "verdict": run.verdict,
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
    }
    return [[name, _plain(str(value))] for name, value in facts.items() if value not in (None, "")]


def _scores(run: Summary) -> list[str]:
    """What `akssl eval` has found, beside its baselines, and the numbers of the run itself."""
    parts = []
    for found in score_tables(run.files, _name):
        rows = [[_plain(cell) for cell in row] for row in found.rows]
        parts += [f"{_plain(found.caption)}:", describe.markdown([_plain(name) for name in found.columns], rows)]
        parts += [_plain(text) for text in (*found.answers, *found.notes)]
    own = {name: value for name, value in run.metrics.items() if name.startswith("knn_")}
    if own:
        rows = [[_plain(name), _plain(number(value))] for name, value in own.items()]
        parts += ["k-NN at the end of the run, in percent:", describe.markdown(["number", "value"], rows)]
    return parts or ["None: nothing was measured. `akssl eval RUN` judges a run by labelled images."]


def _licence(origins: Sequence[Mapping[str, str]]) -> str:
    """The licences of what it has learned from; that of the folder is for its publisher to name."""
    lines = [
        f"- {_plain(_name(one.get('source')))}: licence {_plain(one.get('licence', 'unknown'))}, "
        f"SHA-256 of its weights {_plain(one.get('sha256', 'unknown'))}"
        for one in origins
    ]
    said = "The publisher of this folder names its licence, as `license:` in the first lines of this file."
    if not lines:
        return f"No weights of others went into this network. {said}"
    return "\n".join(["It has learned from these weights, whose licences hold on:", "", *lines, "", said])


def _data(run: Summary) -> str:
    path = run.settings.get("data.path")
    return _name(path) if path else str(run.settings.get("data.name", "unknown"))


def _name(text: Any) -> str:
    """The last name of a path, also of two with words between them; other texts as they are."""
    parts = [part.rstrip("/") for part in ("" if text is None else str(text)).split(", tested on ")]
    return ", tested on ".join(os.path.basename(part) if os.path.isabs(part) else part for part in parts)


def _plain(text: str) -> str:
    """A text that may come from anywhere, in which Markdown and HTML find nothing of theirs."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", visible(text))
