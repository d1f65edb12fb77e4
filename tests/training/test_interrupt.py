"""SIGINT, SIGTERM and SIGUSR1: a run saves, says so and stops, and goes on as if it had not."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest
from whole_runs import same, timeless

import akssl_core
from akssl_core.running.launch import resume
from akssl_core.testing.ranks import Meeting, on_ranks
from akssl_core.training.recorder import ASKS, Interrupted, Signals

SETTINGS = {"epochs": 3, "options": {"noise": 0.1}, "train": {"log_every": 3, "checkpoint_every": 100}}


@pytest.fixture
def blows(toys):
    """The signals that the callback `blow` sends to its own process, by step."""
    planned = {}

    class Blow(akssl_core.Callback):
        name = "blow"

        def on_step(self, engine, terms):
            for number in planned.pop(engine.now.step, ()):
                os.kill(os.getpid(), number)

    toys.registry.add(Blow)
    return planned


@pytest.fixture
def manifest(tmp_path):
    return lambda name="run": json.loads((tmp_path / name / "manifest.json").read_text())


def checkpoints(folder):
    return [int(path.name) for path in sorted((folder / "checkpoints").iterdir())]


@pytest.mark.parametrize("number", ASKS, ids=lambda number: number.name)
@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(start, toys, photos, blows, manifest, tmp_path, number, step):
    whole = start("whole", callbacks=["blow"], **SETTINGS)
    blows[step] = [number]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} at step {step}; all is saved: 'akssl resume"):
        start(callbacks=["blow"], **SETTINGS)
    folder = tmp_path / "run"
    assert checkpoints(folder) == [step]
    assert manifest()["status"] == "stopped"
    assert f"at step {step}" in manifest()["error"]
    result = resume(folder, data=photos, plugins=toys)
    assert timeless(result) == timeless(whole)
    assert same(folder, whole.run_dir)
    assert manifest()["status"] == "finished"
    assert "error" not in manifest()


def test_sums_between_two_rows_survive_a_signal(start, toys, photos, blows, tmp_path):
    """The row that follows is a mean over steps before and after the stop."""
    blows[2] = [signal.SIGTERM]
    with pytest.raises(Interrupted):
        start(callbacks=["blow"], **SETTINGS)
    [folder] = (tmp_path / "run" / "checkpoints").iterdir()
    states = dict(json.loads((folder / "state.json").read_text())["callbacks"])
    assert states["Recorder"]["count"] == 2
    assert states["Recorder"]["sums"]["loss"] > 0


def test_a_term_that_is_no_number_does_not_keep_a_run_from_being_saved(start, toys, photos, blows, monkeypatch):
    method = toys.get("method", "toy")
    original = method.step
    monkeypatch.setattr(method, "step", lambda *args: _without_norm(original(*args)))
    whole = start("whole", callbacks=["blow"], **SETTINGS)
    assert whole.history[0]["z_norm"] is None
    blows[2] = [signal.SIGINT]
    with pytest.raises(Interrupted):
        start(callbacks=["blow"], **SETTINGS)
    assert timeless(resume(whole.run_dir.parent / "run", data=photos, plugins=toys)) == timeless(whole)


def _without_norm(terms):
    return {**terms, "z_norm": terms["z_norm"] * float("nan")}


def test_the_last_step_needs_no_stop(start, blows):
    blows[18] = [signal.SIGTERM]
    result = start(callbacks=["blow"], **SETTINGS)
    assert not blows
    assert result.history[-1]["step"] == 18


def test_a_second_sigint_stops_at_once(start, toys, photos, blows, manifest, tmp_path):
    whole = start("whole", callbacks=["blow"], **SETTINGS)
    blows[4] = [signal.SIGINT, signal.SIGINT]
    with pytest.raises(KeyboardInterrupt) as caught:
        start(callbacks=["blow"], **SETTINGS)
    assert not isinstance(caught.value, Interrupted)
    assert checkpoints(tmp_path / "run") == []
    assert manifest()["status"] == "stopped"
    assert timeless(resume(tmp_path / "run", data=photos, plugins=toys)) == timeless(whole)


@pytest.mark.parametrize("number", [number for number in ASKS if number != signal.SIGINT], ids=lambda n: n.name)
def test_another_signal_that_comes_twice_waits_for_the_checkpoint(start, blows, tmp_path, number):
    """A launcher tells its processes once more when the first of them has ended."""
    blows[4] = [number, number]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} at step 4"):
        start(callbacks=["blow"], **SETTINGS)
    assert checkpoints(tmp_path / "run") == [4]


@pytest.mark.parametrize("blow", [[], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_handlers_are_as_they_were_before(start, blows, blow):
    before = [signal.getsignal(number) for number in ASKS]
    blows[2] = blow
    try:
        start(callbacks=["blow"], **SETTINGS)
    except KeyboardInterrupt:
        assert blow
    assert [signal.getsignal(number) for number in ASKS] == before


def test_a_run_in_another_thread_leaves_signals_alone(start, toys):
    handlers, results = [], []

    class Watcher(akssl_core.Logger):
        name = "watcher"

        def on_row(self, row):
            handlers.append(signal.getsignal(signal.SIGTERM))

    toys.registry.add(Watcher)
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: results.append(start(callbacks=["watcher"], **SETTINGS)))
    thread.start()
    thread.join()
    assert results[0].history[-1]["step"] == 18
    assert set(handlers) == {before}


def test_processes_ask_each_other_rarely_and_hear_of_a_signal_after_the_same_step(monkeypatch):
    talks, exchange = [], Meeting.exchange
    monkeypatch.setattr(Meeting, "exchange", lambda *args: talks.append(args) or exchange(*args))

    def of_rank(group):
        signals = Signals()
        for step in range(1, 10_001):
            if (group.rank, step) == (1, 700):
                signals._remember(signal.SIGTERM, None)
            if told := signals.asked():
                return step, told
        return None

    (first, told), (second, own) = on_ranks(2, of_rank)
    assert first == second >= 700
    assert (told, own) == ("a signal to another process", "SIGTERM")
    assert len(talks) < 2 * first / 10
