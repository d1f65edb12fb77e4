"""SwAV as our upstream has it (SW2): rows are cut off before the prototypes, so that no gradient leaves them."""

from __future__ import annotations

from akssl_plugin_swav import SwAV

from akssl_core import hookimpl


class DetachedCodes(SwAV):
    """SwAV that trains its prototypes alone."""

    name = "detached-codes"

    def project(self, views):
        return [z.detach() for z in super().project(views)]


@hookimpl
def akssl_register(registry):
    registry.add(DetachedCodes)
