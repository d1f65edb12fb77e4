"""What a run has come to, in a few lines."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..config import describe

if TYPE_CHECKING:
    from .process import Result


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
    found = asdict(result.diagnosis) if result.diagnosis else {}
    return "\n".join(
        [
            describe.table(("score", ""), lines),
            f"\nVerdict: {result.diagnosis.words if result.diagnosis else ''}",
            *(f"  {name}: {found[name]}" for name in ("evidence", "cause", "cure") if found.get(name)),
            f"Run folder: {result.run_dir}",
            f"Judge it, with intervals: akssl eval {shlex.quote(str(result.run_dir))}",
            "Use it:",
            "  import akssl_core",
            f"  backbone = akssl_core.load_backbone({str(result.run_dir)!r})",
            "  features = backbone(backbone.preprocess(image))",
        ]
    )
