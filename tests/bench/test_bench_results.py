"""The results file, the meter, the ledger."""

import json
import time

import numpy as np
import pytest
import torch

from ctxedit.bench.meter import Cost, CostMeter, Ledger
from ctxedit.bench.results import ResultRow, Results
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import InputError


def row(key, error=None):
    return ResultRow(
        key, "ddim", "a", "a panda", "object", "a tiger", {"psnr": 1.5, "ssim": None}, error=error
    )


def test_rows_come_back_and_a_failed_one_is_not_done(tmp_path):
    results = Results(tmp_path / "bench")
    results.add(row("1"))
    results.add(row("2", "no"))
    again = Results(tmp_path / "bench")
    assert again.done("1") == row("1") and again.done("2") is None and again.get("2").error == "no"
    again.add(row("2"))
    assert Results(tmp_path / "bench").done("2") == row("2"), "the last row of a key counts"


def test_a_line_that_was_cut_off_is_forgotten_and_does_not_swallow_the_next(tmp_path):
    results = Results(tmp_path)
    results.add(row("1"))
    with results.path.open("a") as stream:
        stream.write('{"key": "2", "met')
    again = Results(tmp_path)
    assert again.done("1") and again.get("2") is None
    again.add(row("3"))
    once_more = Results(tmp_path)
    assert once_more.done("1") and once_more.done("3") and once_more.damaged == 1


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    results = Results(tmp_path)
    for key in "123":
        results.add(row(key))
    lines = results.path.read_bytes().split(b"\n")
    lines[1] = lines[1][:20] + b"\xff\0" + lines[1][22:]
    results.path.write_bytes(b"\n".join(lines))
    again = Results(tmp_path)
    assert again.done("1") and again.done("2") is None and again.done("3") and again.damaged == 1
    results.path.write_bytes(b"a poem\nof two lines\n")
    with pytest.raises(InputError, match="holds no results"):
        Results(tmp_path)


def test_another_files_lines_are_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"loss": 3}\n')
    with pytest.raises(InputError, match=r"line 1 is not a result"):
        Results(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"figures": {"psnr": "x"}}, {"figures": {"psnr": float("inf")}}, {"figures": [1]}, {"costs": [1]},
        {"costs": {"edit": 3}}, {"facts": [1]},
        {"costs": {"edit": {"seconds": "x"}}}, {"facts": {"frames": "x"}}, {"facts": None}, {"video": 3},
    ],
    ids=str,
)  # fmt: skip
def test_rows_with_other_values_are_refused_before_they_are_counted_with(tmp_path, wrong):
    row = {name: "x" for name in ("key", "method", "clip", "target", "kind", "prompt")} | wrong
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="line 1 is not a result"):
        Results(tmp_path)


def test_the_meter_counts_passes_time_and_memory():
    network, meter = torch.nn.Identity(), CostMeter(Reporter())
    tunings, edits, inversions = [], [], []
    with (
        meter.watch(network, 4, torch.device("cpu")),
        meter.noting("tune", tunings.append),
        meter.noting("edit", edits.append),
        meter.noting("invert", inversions.append),
    ):
        with meter.task("tune", 2):
            network(torch.zeros(4, 1))
            network(torch.zeros(8, 1))  # two branches of four frames
            block = np.ones(60 << 20, np.uint8)
            time.sleep(0.15)
            del block
        with meter.task("edit “a cat”", 1):
            network(torch.zeros(12, 1))
        with meter.task("edit “a dog”", 1):
            pass
    network(torch.zeros(4, 1))  # nobody counts any more
    (before,) = tunings
    assert before.evaluations == 3 and 0.15 <= before.seconds < 5
    assert [edit.evaluations for edit in edits] == [3, 0] and not inversions
    assert before.peak_bytes > 60 << 20
    assert not network._forward_hooks


def test_an_interrupted_task_is_accounted_for():
    network, meter, costs = torch.nn.Identity(), CostMeter(Reporter()), []
    with (
        meter.watch(network, 1, torch.device("cpu")),
        meter.noting("tune", costs.append),
        pytest.raises(KeyboardInterrupt),
        meter.task("tune", 9),
    ):
        network(torch.zeros(1, 1))
        raise KeyboardInterrupt
    assert [cost.evaluations for cost in costs] == [1]


def test_a_stage_is_noted_once_at_its_last_step():
    """A process may be killed after a tuning's last state was saved, before the task ends."""
    costs, meter = [], CostMeter(Reporter())
    with meter.noting("tune", costs.append), meter.task("tune", 2) as progress:
        progress(1, "")
        assert costs == []
        progress(2, "")
        assert [(cost.steps, cost.reached) for cost in costs] == [(2, 2)]
    assert len(costs) == 1


def test_the_ledger_adds_what_is_resumed_and_forgets_what_has_changed(tmp_path):
    Ledger(tmp_path).add("tune", "k", Cost(2.0, 100, 10))
    Ledger(tmp_path).add("tune", "k", Cost(1.0, 80, 5))
    Ledger(tmp_path).put("invert", "k", Cost(1.0, 80, 5))
    Ledger(tmp_path).put("invert", "k", Cost(4.0, 70, 6))
    ledger = Ledger(tmp_path)
    assert ledger.of("tune", "k") == Cost(3.0, 100, 15) and ledger.of("invert", "k") == Cost(4.0, 70, 6)
    assert ledger.of("tune", "other") is None and ledger.of("edit", "k") is None
    ledger.add("tune", "other", Cost(1.0, 1, 1))
    assert Ledger(tmp_path).of("tune", "other") == Cost(1.0, 1, 1)


def test_steps_made_twice_are_counted_once(tmp_path):
    """A tuning of ten steps that saves every fourth: interrupted after seven, then resumed at the fifth."""
    for steps, reached in ((7, 7), (6, 10)):
        Ledger(tmp_path).add("tune", "k", Cost(float(steps), 1, steps, steps, reached))
    cost = Ledger(tmp_path).of("tune", "k")
    assert cost == Cost(pytest.approx(10.0), 1, pytest.approx(10), 10, 10)


def test_steps_of_a_killed_process_are_reckoned_at_the_rate_of_the_others(tmp_path):
    """A tuning of ten steps: killed after four, interrupted after seven, then finished."""
    network, meter = torch.nn.Identity(), CostMeter(Reporter())
    with (
        meter.watch(network, 1, torch.device("cpu")),
        meter.noting("tune", lambda cost: Ledger(tmp_path).add("tune", "k", cost)),
    ):
        for steps in (range(5, 8), range(8, 11)):
            with meter.task("tune", 10) as progress:
                for step in steps:
                    network(torch.zeros(2, 1))
                    progress(step, "")
    cost = Ledger(tmp_path).of("tune", "k")
    assert (cost.evaluations, cost.steps, cost.reached) == (20, 10, 10)
    assert cost.table().keys() == {"seconds", "peak_bytes", "evaluations"}
