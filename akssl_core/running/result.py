"""The results of a run: a backbone with its scores, its folder and the verdict."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ..backbone import Backbone
from ..config import describe
from ..data import Preprocess
from ..metrics.diagnosis import Diagnosis, read_diagnosis
from ..rundir.folder import RunDir


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

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name} {value:.4g}" for name, value in self.metrics.items() if name in ("loss", "knn_top1")
        )
        return f"Result({scores or 'no scores'}; {self.verdict or 'no verdict'}; run_dir={str(self.run_dir)!r})"

    @property
    def verdict(self) -> str:
        """Healthy, not learning, dimensional collapse or collapsed; empty where there is no diagnosis."""
        return self.diagnosis.verdict if self.diagnosis else ""

    @property
    def text(self) -> str:
        """The scores, where everything is, and how to use it: what `akssl run` prints."""
        names = {
            "knn_raw_pixels": "k-NN top-1, raw pixels",
            "knn_random_init": "k-NN top-1, same backbone untrained",
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
        lines = [(text, f"{self.metrics[key]:.4g}") for key, text in names.items() if self.metrics.get(key) is not None]
        found = asdict(self.diagnosis) if self.diagnosis else {}
        return "\n".join(
            [
                describe.table(("score", ""), lines),
                f"\nVerdict: {self.diagnosis.words if self.diagnosis else ''}",
                *(f"  {name}: {found[name]}" for name in ("evidence", "cause", "cure") if found.get(name)),
                f"Run folder: {self.run_dir}",
                *([f"Look at it: {self.run_dir / 'report.html'}"] if (self.run_dir / "report.html").exists() else []),
                f"Judge it, with intervals: akssl eval {shlex.quote(str(self.run_dir))}",
                "Use it:",
                "  import akssl_core",
                f"  backbone = akssl_core.load_backbone({str(self.run_dir)!r})",
                "  features = backbone(backbone.preprocess(image))",
            ]
        )


def read_result(run_dir: RunDir, backbone: Backbone) -> Result:
    """The result of a run that has ended."""
    manifest, history = run_dir.manifest, run_dir.history
    assert backbone.preprocess is not None
    metrics = cast("dict[str, float]", manifest.final or {})
    found = read_diagnosis(manifest.table(), history)
    return Result(backbone, backbone.preprocess, metrics, history, run_dir.path, found)
