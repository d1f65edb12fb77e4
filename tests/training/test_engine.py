"""The loop: one optimizer step a batch, slow state once a step, and the same numbers however it is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from akssl_core.errors import ConfigError
from akssl_core.optim import load_state_by_name, set_group_values, state_by_name
from akssl_core.running.layers import collect
from akssl_core.running.plan import make_plan
from akssl_core.settings import TrainSpec
from akssl_core.training import engine as engine_room
from akssl_core.training.convolution import Conv2d
from akssl_core.training.engine import Clock, Engine
from akssl_core.training.hardware import choose_hardware


@pytest.fixture
def plan(toys, photos):
    def make(**settings):
        settings = {"data": photos, "precision": "fp32", "epochs": 2, "batch_size": 16, **settings}
        return make_plan(collect("toy", None, settings, toys), toys)

    return make


class Watch:
    """A callback that remembers what the loop did."""

    def __init__(self):
        self.events, self.losses = [], []

    def on_start(self, engine):
        self.events.append("start")

    def on_step(self, engine, terms):
        self.events.append(engine.now.step)
        self.losses.append(float(dict(terms.items())["loss"]))

    def on_epoch(self, engine):
        self.events.append("epoch")

    def on_end(self, engine):
        self.events.append("end")


def fit(plan, until=None):
    watch = Watch()
    engine = plan.engine([watch])
    engine.fit()
    return engine, watch


def test_every_step_and_epoch_is_told_in_order(plan):
    p = plan()
    engine, watch = fit(p)
    per_epoch = len(p.images) // 16
    steps = list(range(1, 2 * per_epoch + 1))
    expected = ["start", *steps[:per_epoch], "epoch", *steps[per_epoch:], "epoch", "end"]
    assert watch.events == expected
    assert engine.method.steps == 2 * per_epoch


def test_steps_stop_a_run_within_an_epoch(plan):
    _, watch = fit(plan(train={"steps": 1}))
    assert watch.events == ["start", 1, "epoch", "end"]


def test_same_seed_same_losses_another_seed_others(plan):
    noisy = {"noise": 0.1}
    first, again, other = (fit(plan(seed=s, options=noisy))[1].losses for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_callers_random_state_decides_nothing(plan):
    torch.manual_seed(5)
    first = fit(plan(options={"noise": 0.1}))[1].losses
    torch.manual_seed(6)
    assert fit(plan(options={"noise": 0.1}))[1].losses == first


def test_teacher_moves_by_the_schedule_once_a_step(plan):
    p = plan(train={"steps": 1})
    before = {k: v.clone() for k, v in p.method.teacher.named_parameters()}
    fit(p)
    for name, slow in p.method.teacher.named_parameters():
        fast = p.method.get_parameter(name)
        torch.testing.assert_close(slow, 0.9 * before[name] + 0.1 * fast, rtol=1e-5, atol=1e-7)


def test_accumulation_moves_slow_state_once_and_averages_gradients(plan):
    """Batch norm aside (it sees each micro-batch alone), two micro-batches are one batch."""

    def run(accumulate):
        p = plan(train={"steps": 3, "accumulate": accumulate})
        p.method.backbone.bn = p.method.teacher.backbone.bn = torch.nn.Identity()
        engine, watch = fit(p)
        return engine, watch.losses

    (whole, losses), (parts, part_losses) = run(1), run(2)
    assert parts.method.steps == 3
    torch.testing.assert_close(torch.tensor(part_losses), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    for name, value in whole.method.state_dict().items():
        torch.testing.assert_close(parts.method.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_learning_rates_follow_schedule_rules_and_batch(plan):
    engine = plan(epochs=3, optimizer={"lr_per": 8}).engine([])
    rates = []
    for step in (0, engine.now.steps_per_epoch):
        engine.go_to(step)
        set_group_values(engine.optimizer, engine.rates, engine.now, engine.batch_size)
        rates.append(sorted(group["lr"] for group in engine.optimizer.param_groups))
    assert rates[0] == [0, 0]
    assert rates[1] == pytest.approx([0.1, 0.2]), "0.05 x 16 / 8, and twice that for the projector"


def test_going_on_from_the_middle_of_an_epoch_is_bit_identical(plan):
    options = {"noise": 0.1}
    whole, _ = fit(plan(options=options))
    first = plan(options=options).engine([])
    _run_steps(first, 2)
    second = plan(options=options).engine([])
    second.method.load_state_dict(first.method.state_dict())
    load_state_by_name(second.optimizer, state_by_name(first.optimizer))
    second.go_to(2)
    second.fit()
    for name, value in whole.method.state_dict().items():
        assert torch.equal(second.method.state_dict()[name], value), name


def _run_steps(engine: Engine, count: int) -> None:
    class Stop(Exception):
        pass

    class Until:
        def on_start(self, engine):
            pass

        on_epoch = on_end = on_start

        def on_step(self, engine, terms):
            if engine.now.step == count:
                raise Stop

    engine.callbacks = [Until()]
    with pytest.raises(Stop):
        engine.fit()


def test_bf16_is_close_to_fp32_and_keeps_state_in_fp32(plan):
    exact = fit(plan(train={"steps": 2}))[1].losses
    engine, watch = fit(plan(precision="bf16", train={"steps": 2}))
    assert watch.losses == pytest.approx(exact, abs=2e-2)
    assert {p.dtype for p in engine.method.parameters()} == {torch.float32}
    assert engine.method.center.value.dtype == torch.float32


def test_fp16_trains_under_a_scaler_and_skipped_steps_move_nothing(plan):
    p = plan(precision="fp16", train={"steps": 1})
    engine = p.engine([])
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = {k: v.clone() for k, v in engine.method.state_dict().items() if "teacher" in k or "queue" in k}
    weights = {k: v.clone() for k, v in engine.method.named_parameters()}
    engine.fit()
    assert engine.method.steps == 0, "the step overflowed and was skipped"
    for name, value in weights.items():
        assert torch.equal(engine.method.get_parameter(name), value)
    assert all(
        torch.equal(engine.method.state_dict()[k], v)
        for k, v in before.items()
        if "running" not in k and "batches" not in k
    )
    queue, center = engine.method.queue, engine.method.center
    rows, value = queue.rows.clone(), center.value.clone()
    queue.after_step(engine.now)
    center.after_step(engine.now)
    assert torch.equal(queue.rows, rows), "keys were left for the next step"
    assert torch.equal(center.value, value), "rows were left for the next step"


def test_deterministic_mode_lasts_as_long_as_the_training(plan):
    class Look(Watch):
        def on_step(self, engine, terms):
            self.events.append(torch.are_deterministic_algorithms_enabled())

    for wanted in (True, False):
        watch = Look()
        plan(train={"steps": 1, "deterministic": wanted}).engine([watch]).fit()
        assert watch.events[1] is wanted
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("deterministic", [True, False])
def test_fp32_is_no_tf32_while_a_run_trains(plan, deterministic):
    def numbers():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark

    class Look(Watch):
        def on_step(self, engine, terms):
            self.events.append(numbers())

    before, watch = numbers(), Look()
    torch.set_float32_matmul_precision("high")
    try:
        plan(train={"steps": 1, "deterministic": deterministic}).engine([watch]).fit()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert watch.events[1] == (False, "highest", not deterministic)
    assert numbers() == before


def test_the_clock_shares_out_all_of_the_time(monkeypatch):
    moments = iter([10.0, 11.0, 13.0, 16.0, 20.0])
    monkeypatch.setattr(engine_room.time, "perf_counter", lambda: next(moments))
    clock = Clock(torch.device("cpu"))
    for part in ("load", "forward", "load"):
        clock.lap(part)
    assert clock.read() == {"load": 1.0 + 3.0, "forward": 2.0}
    clock.lap("forward")
    assert clock.read() == {"forward": 4.0}


def test_compiled_backbones_train_alike_and_are_left_as_they_were(plan, monkeypatch):
    calls = []

    def compiler(forward):  # stands in for torch.compile, which takes half a minute
        def compiled(images):
            calls.append(images.shape)
            return forward(images)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    (usual, watch), (compiled, other) = fit(plan(epochs=1)), fit(plan(epochs=1, train={"compile": True}))
    assert other.losses == watch.losses
    assert len(calls) >= compiled.now.step
    assert all("forward" not in vars(part) for part in compiled.method.modules())
    assert usual.forwards == {}


def test_an_encoder_put_together_for_probes_stands_where_the_run_computes(plan, monkeypatch):
    monkeypatch.setattr("akssl_core.running.plan.shard", lambda *parts: None)  # which needs several processes
    p = plan()
    p.hardware = replace(p.hardware, device=torch.device("meta"))
    assert {weight.device.type for weight in p._shard().parameters()} == {"meta"}


def test_convolutions_are_fast_while_it_trains_and_torchs_own_afterwards(plan):
    class Look(Watch):
        def on_step(self, engine, terms):
            self.events.append({type(part) for part in engine.method.modules() if isinstance(part, nn.Conv2d)})

    watch, p = Look(), plan(train={"steps": 1}, backbone="resnet18")
    p.engine([watch]).fit()
    assert watch.events[1] == {Conv2d}
    assert {type(part) for part in p.method.modules() if isinstance(part, nn.Conv2d)} == {nn.Conv2d}


def test_hardware_is_chosen_with_a_reason():
    auto = choose_hardware(TrainSpec(device="cpu"))
    assert auto.device.type == "cpu"
    assert "CPU has" in auto.reason
    fixed = choose_hardware(TrainSpec(precision="fp32", device="cpu"))
    assert (fixed.precision, fixed.reason) == ("fp32", "set by the user")


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what a machine without CUDA says")
def test_cuda_without_a_gpu_says_what_to_do():
    with pytest.raises(ConfigError, match="no CUDA device. Use cpu or auto"):
        choose_hardware(TrainSpec(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_trains_like_the_cpu(plan, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits of mantissa, which 1e-3 would notice
    cpu = fit(plan(device="cpu", train={"steps": 3}))[1].losses
    gpu = fit(plan(device="cuda", train={"steps": 3}))[1].losses
    assert gpu == pytest.approx(cpu, abs=1e-3)
