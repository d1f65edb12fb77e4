"""What running leaves: a backbone with scores, folder and verdict, a report, and data decoded once for many runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ..backbone import Backbone
from ..config import describe
from ..config.schema import user_path
from ..data import Preprocess
from ..data.prepare import PreparedData
from ..data.prepare import prepare as prepare_file
from ..metrics.diagnosis import Diagnosis, read_diagnosis
from ..plugins.manager import Plugins, installed
from ..reporting import render
from ..reporting.files import RunFiles, tell_damage
from ..reporting.records import mixture_rows
from ..rundir.files import jsonable
from ..rundir.folder import RunDir
from .rules import CPU_IMAGE_SIZE


@dataclass(frozen=True, repr=False)
class Result:
    """The results of a run. In all but the main process of several there is the backbone alone."""

    backbone: Backbone
    """Maps normalised float images (N, C, H, W) to features (N, D); in eval mode, on the CPU."""
    preprocess: Preprocess
    """Makes such images of PIL images, uint8 tensors or arrays."""
    metrics: dict[str, float]
    """The final numbers."""
    history: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    run_dir: Path
    """The run's folder."""
    diagnosis: Diagnosis | None
    """Health and outcome with evidence, cause and cure."""
    adaptation: Mapping[str, Any] | None = None
    """Which weights were kept of start, trained and mixtures, and the evidence, where `start.keep` is "best"."""

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name} {value:.4g}" for name, value in self.metrics.items() if name in ("loss", "knn_top1")
        )
        return f"Result({scores or 'no scores'}; {self.verdict or 'no verdict'}; run_dir={str(self.run_dir)!r})"

    @property
    def verdict(self) -> str:
        """Healthy, not learning, dimensional collapse or collapsed; empty where there is no diagnosis."""
        return self.diagnosis.verdict if self.diagnosis else ""

    def record(self) -> dict[str, Any]:
        """Scores, verdict and folder as plain values, fit for JSON."""
        found = {name: getattr(self, name) for name in ("metrics", "verdict", "adaptation")}
        table: dict[str, Any] = jsonable({**found, "run_dir": str(self.run_dir)})
        return table

    @property
    def text(self) -> str:
        """The scores, where everything is, and how to use it: what `akssl run` prints."""
        names = {
            "knn_raw_pixels": "k-NN top-1, raw pixels",
            "knn_random_init": "k-NN top-1, same backbone untrained",
            "knn_start": "k-NN top-1, the start",
            "knn_top1": "k-NN top-1, trained",
            "std_ratio": "std of features x sqrt(D) (healthy near 1)",
            "rankme": "effective rank (RankMe)",
            "lidar": "directions that tell images apart (LiDAR)",
            "alpha_req": "fall of the spectrum (alpha-ReQ, good near 1)",
            "alignment": "distance of views (alignment, 0 to 4)",
            "uniformity": "spread over the sphere (uniformity, 0 to -4)",
            "loss": "loss",
            "seconds": "seconds of training and evaluation",
        }
        names |= {key: key for key in self.metrics if key not in names}  # the method's own
        lines = [(text, f"{self.metrics[key]:.4g}") for key, text in names.items() if self.metrics.get(key) is not None]
        found = asdict(self.diagnosis) if self.diagnosis else {}
        unread = self.run_dir / "unreadable.txt"
        return "\n".join(
            [
                describe.table(("score", ""), lines),
                *(("", mixtures(self.adaptation), self.adaptation["answer"]) if self.adaptation else ()),
                f"\nVerdict: {self.diagnosis.words if self.diagnosis else ''}",
                *(f"  {name}: {found[name]}" for name in ("evidence", "cause", "cure") if found.get(name)),
                f"Run folder: {self.run_dir}",
                *([f"Files that could not be read: {unread}"] if unread.exists() else []),
                *([f"Look at it: {self.run_dir / 'report.html'}"] if (self.run_dir / "report.html").exists() else []),
                f"Judge it, with intervals: akssl eval {shlex.quote(str(self.run_dir))}",
                "Use it:",
                "  import akssl_core",
                f"  backbone = akssl_core.load_backbone({str(self.run_dir)!r})",
                "  features = backbone(backbone.preprocess(image))",
            ]
        )


def mixtures(adaptation: Mapping[str, Any]) -> str:
    """The table of what was compared, as text."""
    return describe.table(*mixture_rows(adaptation))


def read_result(run_dir: RunDir, backbone: Backbone) -> Result:
    """The result of a run that has ended."""
    manifest, history = run_dir.manifest, run_dir.history
    assert backbone.preprocess is not None
    metrics = cast("dict[str, float]", manifest.final or {})
    found, chosen = read_diagnosis(manifest.table(), history), run_dir.adaptation
    table = chosen.table() if chosen else None
    return Result(backbone, backbone.preprocess, metrics, history, run_dir.path, found, table)


def prepare(
    data: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    size: int | None = None,
    image_size: int | None = None,
    shard_size: str | int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    plugins: Plugins | None = None,
) -> PreparedData:
    """Decode every image of some data once and write one file or several, from which runs read the same pixels.

    What it will take is said on stderr before it begins.

    Args:
        data: a folder of images, a source's name, or a table with its name and settings.
        out: the file to write, NAME.safetensors; it appears whole or not at all. A name without suffix is a folder of
            shards, such files each. Where it was stopped, the same call goes on and keeps those that are finished.
        size: the shorter side that larger images are reduced to. Default: what the source keeps for training at
            the size that suits its images.
        image_size: the side of view of the runs to come, where another than suits the images: what a backbone is
            shown of reduced images at that size is written too.
        shard_size: about how large each shard is to be: "1GB" (the default), "500MB", or bytes.
        workers: processes that write shards at once, at most one a core. Default: one, with a thread a core.
        overwrite: replace what is there.
        plugins: another plugin manager than the process-wide one.

    Raises:
        AksslError: the target or the source cannot be used, or too many images cannot be read.
    """
    return prepare_file(
        data,
        user_path(out),
        size=size,
        views=(CPU_IMAGE_SIZE,) if image_size is None else (CPU_IMAGE_SIZE, image_size),
        image_size=image_size,
        overwrite=overwrite,
        shard_size=shard_size,
        workers=workers,
        plugins=plugins or installed(),
    )


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written."""

    path: Path
    """The page, `report.html` in the run's folder."""

    @property
    def text(self) -> str:
        """Where it is, as `akssl report` prints it."""
        return str(self.path)


def report(run_dir: str | Path) -> Report:
    """Write `report.html` of a run again from the files of its folder.

    Raises:
        AksslError: the folder holds no run, or a file of it is damaged.
    """
    folder = RunDir.open(user_path(run_dir))
    tell_damage(RunFiles.read(folder.path))
    return Report(folder.write_text("report.html", render(folder.path)))
