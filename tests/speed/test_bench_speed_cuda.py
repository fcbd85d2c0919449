"""The CUDA code of ``bench speed`` on a pretended GPU: tensors are on the CPU, events are a clock's."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ctxedit.bench.speed import limits, measure, report, ways
from ctxedit.bench.speed.counting import counting

CUDA = torch.device("cuda:1")  # not the current device
BEFORE, PEAK = 1000, 5000
TINY = {"adapter": {"width": 16, "blocks": 1, "heads": 2}}


class OnTheCpu(TorchFunctionMode):
    """Every call of torch that names a CUDA device names the CPU instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def here(value):
            return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

        return func(*map(here, args), **{k: here(v) for k, v in (kwargs or {}).items()})


class Event:
    """A CUDA event of a pretended stream: it tells the time at which the stream came to it."""

    def __init__(self, gpu, enable_timing=False):
        self.gpu, self.timing, self.at = gpu, enable_timing, None

    def record(self, stream=None):
        assert stream is not None and stream.device == CUDA, "recorded on the current device's stream"
        self.gpu.pending.append(self)

    def elapsed_time(self, other):
        """Milliseconds; CUDA raises an error unless both events were timed and reached."""
        assert self.timing and other.timing and None not in (self.at, other.at), "not synchronized"
        return 1000 * (other.at - self.at)


class Gpu:
    """What ``torch.cuda`` is asked for, and in which order."""

    def __init__(self):
        self.pending, self.asked = [], []

    def note(self, name, value=None):
        def asked(device=None, *rest):
            assert device is None or device == CUDA, name
            self.asked.append(name)
            return value

        return asked

    def synchronize(self, device=None):
        assert device == CUDA
        self.asked.append("synchronize")
        for number, event in enumerate(self.pending):
            event.at = time.perf_counter() + number * 1e-4
        self.pending = []


@pytest.fixture()
def gpu(monkeypatch):
    gpu = Gpu()
    answers = {
        "is_available": True, "device_count": 2, "is_bf16_supported": True, "empty_cache": None,
        "get_device_name": "Pretended GPU", "reset_peak_memory_stats": None, "memory_allocated": BEFORE,
        "max_memory_allocated": PEAK, "current_stream": SimpleNamespace(device=CUDA),
        "mem_get_info": (1 << 34, 1 << 35),
    }  # fmt: skip
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, gpu.note(name, value))
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing=False: Event(gpu, enable_timing))
    with OnTheCpu():
        yield gpu


def test_every_kind_of_way_runs_on_cuda(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "_SECONDS", 0.0)
    monkeypatch.setattr(limits, "_QUEUED_CALLS", 2)
    real = limits.measure
    # Its square of 8192 would take seconds on a CPU.
    monkeypatch.setattr(limits, "measure", lambda *args: real(*args, square=32))
    every, kinds = measure._ways, (ways.STORED, ways.DIFFUSERS, ways.PLAIN, "contextdiff")
    monkeypatch.setattr(measure, "_ways", lambda *args: [way for way in every(*args) if way.name in kinds])
    plan = measure.SpeedPlan(
        ("contextdiff",), random="tiny", frames=2, steps=2, repeats=1, tune_steps=1, device=str(CUDA),
        settings=TINY,
    )  # fmt: skip
    found = report.table(plan, measure.run(plan))
    assert found["about"]["device"] == "Pretended GPU" and found["about"]["dtype"] == "bfloat16"
    assert {row["way"] for row in found["rows"]} == set(kinds) and len(found["rows"]) == 5
    for row in found["rows"]:
        assert row["peak_bytes"] == PEAK - BEFORE and row["flops"] > 0 and row["share_of_square"] > 0, row
    assert all(value > 0 for value in found["limits"].values())
    assert "| Pretended" not in (page := report.markdown(found)) and "on Pretended GPU" in page


def test_a_call_is_timed_between_events_of_its_own_device(gpu):
    calls = []
    seconds = limits.timed(lambda: calls.append(1), CUDA, 4)
    assert len(calls) == 4 and gpu.asked[0] == gpu.asked[-1] == "synchronize"
    assert seconds == pytest.approx(1e-4 / 4, rel=0.2)


def test_short_calls_are_queued_so_that_launches_do_not_count(gpu, monkeypatch):
    monkeypatch.setattr(limits, "_SECONDS", 0.0)
    seen = []
    monkeypatch.setattr(limits, "timed", lambda call, device, calls=1: seen.append(calls) or 1e-5)
    limits._seconds(lambda: None, CUDA)
    assert seen == [1, *[int(limits._QUEUED_SECONDS / 1e-5)] * limits._TIMES]
    seen.clear()
    limits._seconds(lambda: None, torch.device("cpu"))
    assert seen == [1] * limits._TIMES


def test_what_was_queued_before_is_not_part_of_the_first_phase(gpu):
    clock = ways.Clock(CUDA)
    assert gpu.asked == ["synchronize"]
    clock.lap("invert")
    assert gpu.asked == ["synchronize"] * 2 and list(clock.seconds()) == ["invert"]


def test_memory_is_the_allocators_peak_since_the_block_began(gpu):
    with counting(torch.nn.Linear(2, 2), 1, CUDA) as counts:
        gpu.asked.append("work")
    assert counts.peak_bytes == PEAK - BEFORE
    assert gpu.asked == [
        "synchronize", "reset_peak_memory_stats", "memory_allocated", "work", "synchronize",
        "max_memory_allocated",
    ]  # fmt: skip
