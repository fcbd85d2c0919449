"""The notebook among the samples: its cells run in order, with fewer frames and steps."""

import ast
import json
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "samples"
NOTEBOOK = SAMPLES / "notebook.ipynb"


@pytest.fixture(autouse=True)
def short(tmp_path, monkeypatch):
    (tmp_path / "tiger-beach.mp4").symlink_to(SAMPLES / "tiger-beach.mp4")
    monkeypatch.chdir(tmp_path)
    for name, value in {"CLIP_FRAMES": 2, "TUNE_STEPS": 1, "EDIT_STEPS": 2, "INVERT_STEPS": 2}.items():
        monkeypatch.setenv(f"CTXEDIT_{name}", str(value))


def run(cell, names):
    """Run a cell as Jupyter does, and give the value of its last expression."""
    body = ast.parse(cell).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_its_cells_run_in_order_and_show_videos(capsys):
    table = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in table["cells"] if cell["cell_type"] == "code"]
    names = {}
    shown = [run(cell, names) for cell in cells]
    videos = [one for one in shown if "<video" in getattr(one, "_repr_html_", str)()]
    assert len(videos) == 4, "run, two edits, and the one with a mask"
    assert (
        names["result"].frames.shape == (2, 64, 64, 3) and "(2, 64, 64, 3) uint8" in capsys.readouterr().out
    )
    source, edited = names["result"].frames, names["again"].frames
    assert (edited[:, :32] == source[:, :32]).all() and (edited[:, 32:] != source[:, 32:]).any()


def test_it_is_kept_without_outputs():
    table = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in table["cells"])
