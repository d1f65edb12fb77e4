"""How many threads a run computes with, that it says so and goes on with as many, and what it tells when they wait."""

from __future__ import annotations

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from akssl_core.config.schema import validate
from akssl_core.errors import ConfigError
from akssl_core.method import Choice
from akssl_core.plugins.manager import installed
from akssl_core.rundir.folder import RunDir
from akssl_core.running import plan
from akssl_core.running.launch import resume
from akssl_core.settings import TrainSpec
from akssl_core.training import hardware
from akssl_core.training.callback import Callback
from akssl_core.training.hardware import Cores, choose_threads


@pytest.fixture
def two(monkeypatch):
    """A machine with two threads that nobody has chosen."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rates", "threads", "reason"),
    [
        ({1: 100.0, 2: 190.0}, 2, "one for each core"),
        ({1: 100.0, 2: 90.0}, 2, "one for each core"),
        ({1: 100.0, 2: 20.0}, 1, "5.0 times as fast as 2 beside what else is running"),
    ],
)
def test_fewer_threads_are_taken_where_they_are_clearly_faster(two, monkeypatch, rates, threads, reason):
    monkeypatch.setattr(hardware, "_rates", lambda counts: {count: rates[count] for count in counts})
    choice = choose_threads()
    assert choice.value == threads
    assert reason in choice.reason


def test_what_was_chosen_elsewhere_is_not_measured(two, monkeypatch):
    monkeypatch.setattr(hardware, "_rates", lambda counts: pytest.fail("measured"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads().value == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    assert choose_threads().value == 1


def test_measuring_moves_no_draw_and_no_setting(two, monkeypatch):
    monkeypatch.setattr(hardware, "SPELL", 0.001)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert choose_threads().value in (1, 2)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.get_num_threads() == 2


@pytest.fixture
def seen(toys):
    """The threads at each step of a run with the callback "threads"."""
    found = []

    class Threads(Callback):
        name = "threads"

        def on_step(self, engine, terms):
            found.append(torch.get_num_threads())

    toys.registry.add(Threads)
    return found


def test_a_run_says_how_many_threads_it_took_and_a_resumed_one_takes_as_many(
    start, two, seen, toys, photos, at_step, monkeypatch
):
    monkeypatch.setattr(plan, "choose_threads", lambda: Choice(1, "the machine is busy"))
    at_step(3, _stop)
    with pytest.raises(KeyboardInterrupt):
        start(callbacks=["threads"])
    folder = RunDir.open(start.folder / "run")
    assert folder.read_config()["train"]["threads"] == 1
    assert '"train.threads": "rule: the machine is busy"' in (folder.path / "provenance.json").read_text()
    assert folder.manifest.hardware.threads == 1
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(plan, "choose_threads", lambda: pytest.fail("chosen anew"))
    resume(folder.path, data=photos, plugins=toys)
    assert set(seen) == {1}


def _stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("asked", "cores", "taken"), [(1, 8, 1), (2, 8, 2), (64, 2, 2)])
def test_threads_that_are_asked_for_are_taken_as_far_as_there_are_cores(
    start, two, seen, monkeypatch, asked, cores, taken
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    said = pytest.warns(UserWarning, match="this machine has 2 cores") if asked > cores else nullcontext()
    with said:
        result = start(callbacks=["threads"], train={"threads": asked})
    assert set(seen) == {taken}
    assert RunDir.open(result.run_dir).read_config()["train"]["threads"] == asked


def test_auto_is_a_number_of_threads_and_null_means_it_too():
    spec = [validate(TrainSpec, given, registry=installed()) for given in ({}, {"threads": None}, {"threads": "auto"})]
    assert [one.threads for one in spec] == ["auto"] * 3
    with pytest.raises(ConfigError, match=r"threads: should be greater than 0, or should be 'auto', got 0"):
        validate(TrainSpec, {"threads": 0}, registry=installed())


# -- while it runs ---------------------------------------------------------------------------------
@pytest.fixture
def waited(monkeypatch):
    """Seconds that threads have waited for a core so far, to be set."""
    clock = [0.0]
    monkeypatch.setattr(hardware, "_waited", lambda: clock[0])
    return clock


def minute(cores):
    """A first minute of 650 images a second, without a word."""
    assert not any(cores.look(650, 1.0) for _ in range(60))


def test_a_run_whose_threads_wait_for_cores_says_so_once(two, waited):
    cores = Cores()
    minute(cores)
    told = []
    for _ in range(40):
        waited[0] += 0.6
        told.append(cores.look(22, 1.0))
    assert [text for text in told if text] == [
        "22 images a second, 650 in the first minute: the threads of this run (2) wait for cores that something else "
        "keeps busy. Stop that, or go on with fewer: akssl resume RUN_DIR --set train.threads=1."
    ]


@pytest.mark.parametrize(("rate", "waiting"), [(22, 0.0), (400, 0.6)], ids=["slow data", "busy, and fast enough"])
def test_a_run_that_does_not_lack_cores_says_nothing(waited, rate, waiting):
    cores = Cores()
    minute(cores)
    for _ in range(40):
        waited[0] += waiting
        assert not cores.look(rate, 1.0)


def test_one_thread_cannot_be_fewer(two, waited):
    torch.set_num_threads(1)
    cores = Cores()
    minute(cores)
    waited[0] += 6
    assert cores.look(220, 10.0).endswith("keeps busy. Stop that.")


def test_linux_counts_how_long_threads_wait():
    assert hardware._waited() >= 0
