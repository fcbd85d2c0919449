"""The curve's files: what was logged is what the table says; a cut line ends a log."""

import csv
import json

from PIL import Image

from ctxedit.inspection.curve import read_log, write

ROWS = [
    {"step": 1, "loss": 0.5, "shift": 0.0, "clip_text": None},
    {"step": 2, "loss": 0.25, "shift": 0.125, "clip_text": 0.75},
]


def test_the_table_holds_every_step_of_every_tuning(tmp_path):
    files = write({"with": ROWS, "without": ROWS[:1]}, tmp_path)
    with files.table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["tuning"], r["step"]) for r in rows] == [("with", "1"), ("with", "2"), ("without", "1")]
    assert (rows[1]["loss"], rows[1]["shift"], rows[1]["clip_text"]) == ("0.25", "0.125", "0.75")
    assert rows[0]["clip_text"] == ""


def test_the_picture_has_a_panel_for_each_figure_there_is(tmp_path):
    with Image.open(write({"with": ROWS}, tmp_path).picture) as image:
        wide = image.size
    with Image.open(write({"with": ROWS[:1]}, tmp_path).picture) as image:
        narrow = image.size
    assert wide[1] == narrow[1] and wide[0] == narrow[0] * 3 // 2


def test_a_line_that_a_kill_cut_short_ends_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    assert read_log(log) == []
    log.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:-9])
    assert read_log(log) == ROWS[:1]
