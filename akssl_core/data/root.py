"""Where data sets that are not passed by path are kept."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """The folder that AKSSL_DATA names, or `~/.cache/akssl`."""
    return Path(os.environ.get("AKSSL_DATA") or "~/.cache/akssl").expanduser()
