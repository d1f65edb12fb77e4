"""The runs that benchmarks of speed train: a method's default recipe on a ResNet-18 with the ImageNet stem."""

from __future__ import annotations

from typing import Any

from akssl_core.augment.policy import BLUR_FROM
from akssl_core.plugins.manager import installed
from akssl_core.running.layers import collect
from akssl_core.running.plan import Plan, make_plan


def plan_for(method: str, data: Any, precision: str, batch: int, size: int) -> Plan:
    """One of our runs, by the method's default recipe; blur from 64 px up, as everybody else."""
    settings: dict[str, Any] = {
        "data": data,
        "backbone": {"name": "resnet18", "stem": "imagenet"},
        "batch_size": batch,
        "image_size": size,
        "precision": precision,
        "epochs": 1000,
    }
    plugins = installed()
    plan = make_plan(collect(method, None, settings, plugins), plugins)
    if size < BLUR_FROM:
        return plan
    table = plan.spec.table()["augmentation"]
    for policy in (table, table.get("first"), table.get("second"), table.get("local")):
        if policy is not None and "scale" in policy:
            policy["blur"] = 0.5
    return make_plan(collect(method, None, {**settings, "augmentation": table}, plugins), plugins)
