"""``ctxedit bench speed`` as a person has it, on a tiny network; what is counted, against what is known."""

import json
import weakref

import pytest
import torch
import torch.nn.functional as F

from ctxedit.bench.speed import limits, measure, report, ways
from ctxedit.bench.speed.counting import LiveTensors, counting
from ctxedit.bench.speed.limits import Limits, shapes_of

SMALL = ("bench", "speed", "--random", "tiny", "--frames", 2, "--size", 64, "--steps", 2)
ADAPTER = ("--set", "adapter.width=32", "--set", "adapter.blocks=1", "--set", "adapter.heads=4")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    from asking import call

    out = tmp_path_factory.mktemp("speed")
    arguments = ("--presets", "contextdiff", "--tune-steps", 1, "--repeats", 1, "--dtype", "bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_SECONDS", 0.0)  # of each of 17 shapes; its five calls remain
        answer = call(*SMALL, *ADAPTER, *arguments, "-o", out, "--json", "-q")
    assert answer.code == 0, answer.err
    return answer, out


def test_every_way_is_measured_side_by_side(measured):
    answer, out = measured
    rows = {(row["task"], row["way"]): row for row in answer.table["rows"]}
    assert {way for task, way in rows if task == "edit"} == {
        ways.STORED, ways.STORED_HERE, ways.DIFFUSERS, "contextdiff", ways.SECOND_ORDER, ways.PARTLY_GUIDED,
    }  # fmt: skip
    assert {way for task, way in rows if task == "tune"} >= {ways.PLAIN, "contextdiff"}
    # 2 steps: inversion 2, guidance 4; ours adds the source's branch in the fused half.
    assert rows["edit", ways.STORED]["passes"] == 6 and rows["edit", ways.STORED_HERE]["passes"] > 6
    assert rows["edit", ways.DIFFUSERS]["passes"] == 4 and rows["edit", "contextdiff"]["passes"] == 7
    # One step each way, none of it fused; and of two steps only the first is guided.
    assert rows["edit", ways.SECOND_ORDER]["passes"] == 3 and rows["edit", ways.PARTLY_GUIDED]["passes"] == 6
    assert rows["tune", "contextdiff"]["passes"] == 1 and rows["tune", ways.FEW_FRAMES]["passes"] == 0.5
    for row in rows.values():
        assert row["seconds"]["least"] <= row["seconds"]["median"] <= row["seconds"]["most"]
        assert row["flops"] > 0 and row["peak_bytes"] > 0 and row["rate"] > 0
    assert set(rows["edit", "contextdiff"]["phases"]) == {"invert", "sample"}
    found = json.loads((out / "speed.json").read_text())
    assert found["limits"] == answer.table["limits"] and all(v > 0 for v in found["limits"].values())
    assert (out / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert report.markdown(found) == (out / "speed.md").read_text() and "diffusers" in report.markdown(found)


def test_the_same_weights_give_the_same_operations_a_pass(measured):
    """A pass of the network costs as many operations, whoever makes it; attention differs a little."""
    rows = {row["way"]: row for row in measured[0].table["rows"] if row["task"] == "edit"}
    per_pass = {way: row["flops"] / row["passes"] for way, row in rows.items()}
    assert per_pass[ways.STORED_HERE] == pytest.approx(per_pass[ways.DIFFUSERS], rel=0.2)
    assert per_pass[ways.STORED] == pytest.approx(per_pass[ways.STORED_HERE], rel=0.5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--presets", "nope"), "nope"),
        (("--presets", ","), "no preset"),
        (("--random", "sd99"), "sd99"),
        (("--random", "tiny", "--model", "sd14"), "--random and --model"),
        (("--set", "edit.stops=3"), "edit.stops"),
        (("--steps", "0"), "--steps"),
        (("--presets", "ddim", "--only", "stored mops"), "stored mops"),
    ],
)
def test_refusals(more, said, monkeypatch):
    from asking import call

    answer = call("bench", "speed", *more)
    assert answer.code == 2 and said in answer.err


def test_some_ways_alone_are_counted_and_timed_in_one_run(monkeypatch):
    runs = []
    monkeypatch.setattr(measure.limits, "measure", lambda *args: Limits(1.0, 1.0, 1.0, 1.0))
    monkeypatch.setattr(ways, "_edit", lambda *args: pytest.fail("this one is not chosen"))
    stored = ways._edit_stored
    monkeypatch.setattr(ways, "_edit_stored", lambda *args: (runs.append(args), stored(*args)))
    plan = measure.SpeedPlan(("ddim",), random="tiny", frames=2, steps=2, repeats=0, only=("stored maps",))
    found = report.table(plan, measure.run(plan))
    (row,) = found["rows"]
    assert "one run of each" in report.markdown(found) and "stored attention maps" in report.markdown(found)
    assert row["way"] == ways.STORED and len(runs) == 1
    assert row["passes"] == 6 and row["seconds"]["median"] > 0 and row["processor_seconds"] > 0
    # One fused step of 2 frames and 2 heads: seven layers at 4², 2² and 1² latents,
    # each attends to itself and to 77 words.
    tokens = [16] * 3 + [4] * 3 + [1]
    elements = 2 * 2 * sum(n * n + n * 77 for n in tokens)
    assert row["stored_bytes"] == elements * getattr(torch, row["dtype"]).itemsize <= row["peak_bytes"]


def test_a_way_that_does_not_fit_leaves_the_others_measured(monkeypatch, tmp_path):
    plan = measure.SpeedPlan(("ddim",), frames=2, steps=2, repeats=1, tune_steps=1)
    config = plan.load("ddim")

    held = []

    def too_large(parts, folder, clock):
        store = torch.zeros(8)
        store.itself = store  # freed by the garbage collector alone
        held.append(weakref.ref(store))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def quick(parts, folder, clock):
        assert held[0]() is None  # the next way has the memory of the one that failed
        _ = parts.latents + 1
        clock.lap("sample")

    found = [ways.Way("large", "edit", config, too_large), ways.Way("small", "edit", config, quick)]
    monkeypatch.setattr(measure, "_ways", lambda plan, model: found)
    monkeypatch.setattr(measure.limits, "measure", lambda *args: Limits(1.0, 1.0, 1.0, 1.0))
    measured = measure.run(plan)
    assert [row.error for row in measured.rows] == ["not enough memory", ""]
    table = report.table(plan, measured)
    files = report.write(tmp_path, table)
    assert "| large | not enough memory |" in files.markdown.read_text() and files.plot.stat().st_size
    assert table["rows"][1]["seconds"]["runs"]


def test_live_tensors_counts_what_is_held_and_lets_go():
    before = torch.zeros(1000)
    with LiveTensors() as live:
        a = before + 1  # 4000 bytes
        b = a.view(10, 100) * 2  # 4000 more; the view holds nothing
        del a
        c = b + 1
        del b, c
    assert (live.live, live.peak) == (0, 8000)


def test_live_tensors_sees_what_autograd_keeps():
    weight = torch.zeros(100, requires_grad=True)
    with LiveTensors() as live:
        loss = (weight.exp().exp()).sum()
        assert live.live >= 800  # both results are kept for the gradient
        loss.backward()
        del loss
    assert live.live == 400  # the gradient


def test_operations_of_a_linear_layer_and_of_attention():
    net = torch.nn.Linear(8, 4)
    q = torch.randn(2, 3, 16, 8)
    with counting(net, 2, torch.device("cpu")) as counts:
        net(torch.randn(6, 8))
        F.scaled_dot_product_attention(q, q, q)
    assert counts.flops == 2 * 6 * 8 * 4 + 2 * (2 * 2 * 3 * 16 * 16 * 8) and counts.passes == 3


def test_shapes_of_layers():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.nn.Flatten(2))
    net.append(torch.nn.Linear(16, 7))
    products, convolutions = shapes_of(net, lambda: net(torch.randn(2, 3, 8, 8)))
    ((product, times),) = products.items()
    assert (product.rows, product.into, product.out, times) == (10, 16, 7, 1)
    ((convolution, _),) = convolutions.items()
    assert convolution.flops == 2 * 2 * 3 * 5 * 9 * 16
