"""What a run has come to, in a few lines."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..config import describe
from ..rundir.folder import RunDir

if TYPE_CHECKING:
    from .process import Result


def _verdict(result: Result) -> str:
    """The verdict; where it is a bad one, with evidence, cause and cure."""
    folder = RunDir(result.run_dir)
    found = (folder.manifest.diagnosis if folder.begun else None) or {}
    reasons = [f"\n  {name}: {found[name]}" for name in ("evidence", "cause", "cure") if found.get(name)]
    return result.verdict + "".join(reasons)


def summary(result: Result) -> str:
    """The scores, where everything is, and how to use it."""
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
    lines = [(text, f"{result.metrics[key]:.4g}") for key, text in names.items() if result.metrics.get(key) is not None]
    return "\n".join(
        [
            describe.table(("score", ""), lines),
            f"\nVerdict on collapse: {_verdict(result)}",
            f"Run folder: {result.run_dir}",
            f"Judge it, with intervals: akssl eval {shlex.quote(str(result.run_dir))}",
            "Use it:",
            "  import akssl_core",
            f"  backbone = akssl_core.load_backbone({str(result.run_dir)!r})",
            "  features = backbone(backbone.preprocess(image))",
        ]
    )
