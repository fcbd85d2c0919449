"""The table of presets/README.md is what the plan states."""

from pathlib import Path

import memory
import pytest


def test_the_table_is_up_to_date():
    text = (Path(__file__).parents[1] / "presets" / "README.md").read_text()
    assert memory.table() in text, "python tests/memory.py table"


@pytest.mark.parametrize("name", ["SD 1.x", "SD 2.x", "SDXL"])
def test_what_saves_memory_does(name):
    plain, offload, low = (memory.peaks(name, 8, 512, **flags) for flags in memory._MODES.values())
    assert all(a > b >= c for a, b, c in zip(plain, offload, low, strict=True))
    assert low[1] < plain[1] * 0.8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stage", ["invert", "edit", "tune"])
def test_a_full_size_checkpoint_takes_what_the_plan_states(tmp_path_factory, stage, dtype):
    """Minutes of a core for each, and up to 16 GB."""
    import json
    import subprocess
    import sys

    folder = tmp_path_factory.getbasetemp() / "full size"
    if not (folder / "sd14").exists():
        folder.mkdir(exist_ok=True)
        memory.make_sd14(folder)
    command = [sys.executable, memory.__file__, "measure", folder / "sd14", stage, dtype, "8"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert row["measured"] == pytest.approx(row["foretold"], rel=0.2), row
