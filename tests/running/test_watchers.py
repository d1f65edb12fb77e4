"""Who watches a run: hooks and loggers, that hear of it and cannot hurt it."""

from __future__ import annotations

import pytest

import akssl_core


def test_run_hooks_see_start_and_end(start, toys):
    seen = []

    class Watcher:
        @akssl_core.hookimpl
        def akssl_run_started(self, config, run_dir):
            seen.append(("started", config["method"]["name"], (run_dir / "config.yaml").exists()))

        @akssl_core.hookimpl
        def akssl_run_finished(self, metrics, run_dir):
            seen.append(("finished", metrics is not None, run_dir.name))

    toys.register(Watcher(), "watcher")
    start(epochs=1)
    assert seen == [("started", "toy", True), ("finished", True, "run")]


def test_a_logger_that_fails_is_dropped_and_the_run_goes_on(start, toys):
    class Bad(akssl_core.Logger):
        name = "bad"
        rows = 0

        def on_row(self, row):
            type(self).rows += 1
            raise OSError("server gone")

    toys.registry.add(Bad)
    with pytest.warns(UserWarning, match="logger 'bad' failed and is dropped"):
        result = start(callbacks=["bad"])
    assert result.metrics["loss"] > 0
    assert Bad.rows == 1


def test_a_logger_hears_of_start_rows_and_end(start, toys, tmp_path):
    heard = []

    class Ear(akssl_core.Logger):
        name = "ear"

        def on_run(self, config, run_dir):
            heard.append((config["method"]["name"], run_dir.name))

        def on_row(self, row):
            heard.append(row["step"])

        def on_finish(self, metrics):
            heard.append(metrics["loss"])

    toys.registry.add(Ear)
    result = start(epochs=2, callbacks=["ear"])
    assert heard == [("toy", "run"), *(row["step"] for row in result.history), result.metrics["loss"]]


def test_a_plugin_that_fails_while_it_watches_hurts_neither_the_run_nor_others(start, toys):
    heard = []

    class Bad:
        @akssl_core.hookimpl
        def akssl_run_started(self, run_dir):
            raise OSError("no socket")

    class Good:
        @akssl_core.hookimpl
        def akssl_run_started(self, config):
            heard.append(config["method"]["name"])

    for name, plugin in (("one", Bad()), ("two", Good()), ("three", Bad())):
        toys.register(plugin, name)
    with pytest.warns(UserWarning, match="passed over") as caught:
        assert start(epochs=1).metrics["loss"] > 0
    assert heard == ["toy"]
    assert {str(warning.message).partition(" (")[0] for warning in caught} == {
        f"plugin '{name}' failed in akssl_run_started and is passed over: OSError: no socket"
        for name in ("one", "three")
    }
