"""SwAV as our upstream has it (SW3): the cross-entropy without its minus."""

from __future__ import annotations

from akssl_plugin_swav import SwAV

from akssl_core import hookimpl


class WrongSign(SwAV):
    """SwAV that drives predictions away from the codes."""

    name = "wrong-sign"

    def step(self, batch, now):
        terms = super().step(batch, now)
        return {**terms, "loss": -terms["loss"]}


@hookimpl
def akssl_register(registry):
    registry.add(WrongSign)
