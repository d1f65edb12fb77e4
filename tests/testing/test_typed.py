"""What `Method[TokenBackbone]` says to the core and to type checkers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from akssl_core import Backbone, Method, TokenBackbone

ROOT = Path(__file__).parents[2]
PLUGIN = """\
from typing import Any

from akssl_core import Batch, Method, Now, TokenBackbone
from torch import Tensor


class Masked(Method[TokenBackbone]):
    def __init__(self, config: Any, backbone: TokenBackbone) -> None:
        super().__init__(config, backbone)
        self.side: int = self.backbone.patch_size

    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        keep = batch.draws.uniform("mask", 49).argsort(1)[:, :12]
        return {"loss": self.backbone.features(batch.views["global"][0], keep=keep).pooled.mean()}


class Plain(Method):
    def step(self, batch: Batch, now: Now) -> dict[str, Tensor]:
        side: int = self.backbone.patch_size
        return {"loss": self.backbone(batch.views["global"][0]).mean() / side}


def name_of(method: type[Method]) -> str:
    return method.name


name_of(Masked)
"""


def test_the_parameter_of_a_method_is_what_it_accepts():
    class Masked(Method[TokenBackbone]):
        pass

    class Narrower(Masked):
        pass

    class Plain(Method):
        pass

    assert (Masked.accepts, Narrower.accepts, Plain.accepts) == (TokenBackbone, TokenBackbone, Backbone)


def test_type_checkers_know_the_backbone(tmp_path):
    file = tmp_path / "masked.py"
    file.write_text(PLUGIN)
    command = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", ROOT / ".mypy_cache", file)
    told = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=600).stdout
    errors = [line for line in told.splitlines() if "error:" in line]
    assert len(errors) == 1, told
    assert "masked.py:19: error: Incompatible types" in errors[0], told
