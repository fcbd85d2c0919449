"""Tables of rows whose figures are known."""

import pytest

from ctxedit.bench import tables
from ctxedit.bench.latex import to_latex
from ctxedit.bench.results import ResultRow


def row(method, clip, target, kind, text, psnr=None, error=None, tune=(), trained=0):
    costs = {"edit": {"seconds": 2.0, "peak_bytes": 3 << 20, "evaluations": 8.0}}
    if tune:
        costs["tune"] = {"seconds": tune[0], "peak_bytes": 5 << 20, "evaluations": tune[1]}
    figures = {} if error else {"clip_text": text, "psnr_kept": psnr}
    facts = {} if error else {"trained": trained}
    return ResultRow(
        f"{method}{clip}{target}", method, clip, target, kind, "p", figures, costs, facts, None, error
    )


ROWS = [
    row("x", "a", "1", "object", 0.2, 20.0, tune=(10.0, 5.0), trained=1000),
    row("x", "a", "2", "style", 0.4, tune=(10.0, 5.0), trained=1000),
    row("x", "b", "1", "object", 0.6, 30.0, tune=(20.0, 5.0), trained=1000),
    row("x", "c", "1", "object", 0, error="broken"),
    row("x+adapter", "a", "1", "object", 0.3, 22.0, tune=(30.0, 5.0), trained=3000),
    row("x+adapter", "a", "2", "style", 0.5, tune=(30.0, 5.0), trained=3000),
    row("x+adapter", "b", "1", "object", 0.9, 30.0, tune=(30.0, 5.0), trained=3000),
    row("x+adapter", "c", "1", "object", 0.9, 10.0, tune=(30.0, 5.0), trained=3000),
]


def test_means_by_kind_and_what_failed():
    plain, _ = tables.summary(ROWS, ["x", "x+adapter"])
    assert (plain["edits"], plain["failed"]) == (3, 1)
    assert plain["figures"]["all"]["clip_text"]["mean"] == pytest.approx(0.4)
    assert plain["figures"]["object"]["clip_text"]["mean"] == pytest.approx(0.4)
    assert plain["figures"]["object"]["psnr_kept"]["mean"] == pytest.approx(25)
    assert (
        plain["figures"]["style"]["clip_text"]["count"] == 1 and "psnr_kept" not in plain["figures"]["style"]
    )


def test_differences_are_of_the_edits_that_both_have():
    (change,) = tables.differences(ROWS, tables.adapter_pairs(["x", "x+adapter"]))
    found = change["figures"]["all"]["clip_text"]
    assert change["edits"] == 3 and found["mean"] == pytest.approx((0.1 + 0.1 + 0.3) / 3)
    # Two clips: resampling gives clip a twice, both, or clip b twice.
    assert (found["low"], found["high"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert change["figures"]["object"]["psnr_kept"]["mean"] == pytest.approx(1)


def test_costs_count_a_tuning_once_a_clip():
    plain, added = tables.summary(ROWS, ["x", "x+adapter"])
    costs = plain["costs"]
    assert costs["tune"]["seconds"] == 15 and costs["seconds_a_step"] == 3 and costs["trained"] == 1000
    assert costs["invert"]["seconds"] is None and costs["edit"]["evaluations"] == 8
    text = tables.costs_markdown([plain, added], [("x", "x+adapter")], ["Two clips."])
    assert "| x | 1,000 | 3.000 | 15.0 | - | 2.0 | 5 | - | 8 | 5 |" in text
    assert "| x | 1,000 → 3,000 (× 3.00) | 3.000 → 6.000 (× 2.00) | 2.00 → 2.00 (× 1.00) |" in text


def test_markdown_and_csv():
    summary = tables.summary(ROWS, ["x", "x+adapter"])
    changes = tables.differences(ROWS, [("x", "x+adapter")])
    text = tables.to_markdown(summary, changes, ["About."])
    assert "| x | 3 (1 failed) | 0.400 [0.300, 0.600] | 25.0 [20.0, 30.0] |" in text
    assert "## Kind: style" in text and "x+adapter minus x" in text
    assert "| CLIP-text | higher | +0.167 [+0.100, +0.300] |" in text
    assert "x,object,psnr_kept,25.0,20.0,30.0,2,2" in tables.to_csv(summary).splitlines()


def test_equal_pixels_have_an_infinite_psnr_in_every_table():
    equal = [row("source", c, "1", "object", 0.2, 100.0) for c in "ab"]
    near = [row("x", c, "1", "object", 0.2, psnr) for c, psnr in (("a", 100.0), ("b", 40.0))]
    summary = tables.summary([*equal, *near], ["source", "x"])
    text = tables.to_markdown(summary, [], [])
    assert "| source | 2 | 0.200 [0.200, 0.200] | inf |" in text
    assert "| x | 2 | 0.200 [0.200, 0.200] | 70.0 [40.0, inf] |" in text
    assert r"$\infty$" in to_latex(summary) and "100.0" not in to_latex(summary)
