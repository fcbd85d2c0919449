"""The tables of presets/README.md and the sentence of README.md are what the plan states."""

import json
import subprocess
import sys
from pathlib import Path

import memory
import pytest

from ctxedit.footprint import captioner_bytes


def test_the_tables_are_up_to_date():
    text = (Path(__file__).parents[1] / "presets" / "README.md").read_text()
    assert memory.table() in text and memory.cards() in text, "python tests/memory.py table"


def test_the_short_form_is_up_to_date():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    assert memory.short() in " ".join(text.split()), "python tests/memory.py table"


@pytest.mark.parametrize("name", ["SD 1.x", "SD 2.x", "SDXL"])
def test_what_saves_memory_does(name):
    plain, offload, low = (memory.peaks(name, 8, 512, **flags) for flags in memory._MODES.values())
    assert all(a > b >= c for a, b, c in zip(plain, offload, low, strict=True))
    assert low[1] < plain[1] * 0.8


def test_a_captioner_takes_what_was_measured():
    """BLIP-2 with OPT 2.7b in bfloat16; see presets/README.md."""
    assert captioner_bytes(3_744_761_856, 2) / 2**30 == pytest.approx(8.31, rel=0.2)


STAGES = [
    ("sd14", stage, dtype, 8, 512)
    for stage in ("invert", "edit", "tune")
    for dtype in ("bfloat16", "float32")
]
STAGES += [
    ("sd14", "tune", dtype, frames, side)
    for dtype in ("bfloat16", "float32")
    for frames, side in ((2, 384), (4, 256))
]
STAGES += [
    ("sdxl", "invert", "bfloat16", 1, 1024),
    ("sdxl", "edit", "bfloat16", 1, 1024),
    ("blip2", "caption", "bfloat16", 1, 512),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "stage", "dtype", "frames", "side"), STAGES)
def test_a_full_size_checkpoint_takes_what_the_plan_states(
    tmp_path_factory, model, stage, dtype, frames, side
):
    """Minutes of a core for each, and up to 16 GB."""
    folder = tmp_path_factory.getbasetemp() / "full size"
    folder.mkdir(exist_ok=True)
    program = [sys.executable, memory.__file__]
    if not (folder / model).exists():  # in a process of its own: this one would not shrink again
        subprocess.run([*program, "make", model, folder], check=True)
    command = [*program, "measure", folder / model, stage, dtype, str(frames), str(side)]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert row["measured"] == pytest.approx(row["foretold"], rel=0.2), row
