"""What tests of whole runs share."""

from __future__ import annotations

import pytest
from whole_runs import Stop


@pytest.fixture
def killed(start, toys, monkeypatch):
    """The folder of a run that was killed within a step."""

    def begin(step=6, name="killed", **settings):
        method = toys.get("method", "toy")
        original = method.after_step

        def dies(self, now):
            if now.step == step:
                raise Stop
            original(self, now)

        with monkeypatch.context() as patch:
            patch.setattr(method, "after_step", dies)
            with pytest.raises(Stop):
                start(name, **settings)
        return start.folder / name

    return begin
