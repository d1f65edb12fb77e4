"""Collectives over the processes of a run. In one process each of them is the identity.

Every process holds as many rows as every other. Gradients follow one rule: the backward pass of a collective
sums over ranks, and DDP then averages, so that a loss over gathered rows has the gradient of one process that
holds the whole batch.
"""

from .batch_norm import shared_statistics as shared_statistics
from .collectives import Group as Group
from .collectives import Imagined as Imagined
from .collectives import acting_in as acting_in
from .collectives import any_rank as any_rank
from .collectives import from_main as from_main
from .collectives import gather as gather
from .collectives import is_main as is_main
from .collectives import local_rank as local_rank
from .collectives import lost_peer as lost_peer
from .collectives import mean as mean
from .collectives import no_sync as no_sync
from .collectives import rank as rank
from .collectives import start as start
from .collectives import stop as stop
from .collectives import world as world
from .collectives import wrap as wrap
