"""``ctxedit bench`` as a person has it: on the built-in models, once through; refusals before any weight."""

import json

import pytest
from asking import TARGET

PROMPT = "a tiger walking on the beach"
LIST = """
[[clips]]
path = "{clip}"
prompt = "a tiger walking on the beach"
[[clips.targets]]
prompt = "a panda walking on the beach"
kind = "object"
expect = {{ object = "panda", background = "beach" }}
"""
FEW = """
[clip]
frames = 3
[tune]
steps = 2
[invert]
steps = 2
[edit]
steps = 2
"""


@pytest.fixture(scope="session")
def listed(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("list")
    (folder / "clips.toml").write_text(LIST.format(clip=clip))
    (folder / "few.toml").write_text(FEW)
    # A preset of one's own that trains nothing: --config gives steps of tuning to every preset alike.
    (folder / "plain.toml").write_text(
        'about = "plain"\n[adapter]\nenabled = false\n[tune]\ntrainable_modules = ["attn1.to_q"]\n'
        "[fusion]\nself_replace_steps = 0.0\ncross_replace_steps = 0.0\n"
    )
    return folder


@pytest.fixture(scope="session")
def compared(listed):
    from asking import call

    arguments = ("--presets", f"{listed / 'plain.toml'},contextdiff", "--config", listed / "few.toml")
    arguments = ("bench", listed / "clips.toml", *arguments, "-o", listed / "out")
    answer = call(*arguments, *("--compare", "plain:contextdiff") * 2)
    assert answer.code == 0, answer.err
    return arguments, answer


def test_a_comparison_from_end_to_end(compared, listed):
    _, answer = compared
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", "source", "plain", "contextdiff"]
    assert "[2/2" in answer.err and TARGET in answer.err and "table.md" in answer.err
    out = listed / "out"
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["source", "plain", "contextdiff"]
    assert all(-1 <= row["figures"]["clip_text"] <= 1 and row["error"] is None for row in rows)
    assert all(row["costs"]["tune"]["evaluations"] == 2 for row in rows[1:])
    assert rows[2]["facts"]["trained"] > rows[1]["facts"]["trained"] > 0
    latex = (out / "table.tex").read_text()
    (plain,) = [line for line in latex.splitlines() if line.startswith("plain & ")]
    assert lines[2].split()[2] in plain and latex.count(r"\\") == 4 and r"\bottomrule" in latex
    text = (out / "table.md").read_text()
    assert text.count("contextdiff minus plain") == 1, "a pair that is named twice is one"
    assert "| contextdiff | 1 |" in text and "## Kind: object" in text
    assert (
        "| plain |" in (out / "costs.md").read_text() and "data:video/mp4" in (out / "index.html").read_text()
    )


def test_a_second_call_loads_nothing_and_json_is_pure(compared, ctxedit, no_weights):
    arguments, _ = compared
    answer = ctxedit(*arguments, "--json", "-q")
    assert answer.code == 0 and answer.err == ""
    assert [t["method"] for t in answer.table["methods"]] == ["source", "plain", "contextdiff"]
    assert answer.table["failed"] == [] and answer.table["page"].endswith("index.html")
    plan = ctxedit(*arguments, "--dry-run", "--json").table["plan"]
    assert (plan["edits"], plan["done"], plan["evaluations"]) == (2, 2, {})
    text = ctxedit(*arguments, "--seed", 5, "--dry-run").out
    assert "2, 0 of them done" in text and "iB at most" in text


def test_workers_give_the_figures_of_one_process(compared, listed, ctxedit, tmp_path, no_weights):
    """Each preset on a worker of its own, the clip's reference with the first; only the costs may differ."""
    arguments, _ = compared
    workers = (*arguments[:-1], tmp_path / "out", "--workers", 2, "--threads", 1)
    assert "2 workers on this machine, 1 thread each" in ctxedit(*workers, "--dry-run").out
    answer = ctxedit(*workers)
    assert answer.code == 0, answer.err
    rows = [
        {
            row["method"]: (row["key"], row["figures"], row["facts"])
            for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())
        }
        for out in (listed / "out", tmp_path / "out")
    ]
    assert rows[0] == rows[1]
    refused = ctxedit(*workers[:-4], "--workers", 99999, "--seed", 5, "--dry-run")
    assert refused.code == 5 and "99999 workers" in refused.err


def test_a_study_of_it(compared, listed, ctxedit):
    answer = ctxedit("bench", "study", listed / "out", "--count", 3)
    assert answer.code == 0 and answer.out.strip().endswith("study/index.html"), answer.err
    key = json.loads((listed / "out" / "study" / "key.json").read_text())
    (question,) = key["questions"]
    given = {"id": question["id"], "text": "a", "temporal": "b"}
    file = listed / "answers.json"
    file.write_text(json.dumps({"study": key["study"], "rater": "r", "answers": [given]}))
    table = ctxedit("bench", "answers", listed / "out", file, "--json", "-q").table
    found = {p["criterion"]: (p["first"], p["wins"]) for p in table["preferences"]}
    assert found["text"] == ("contextdiff", int(question["a"] == "contextdiff"))
    assert found["temporal"][1] == 1 - found["text"][1]
    assert "text alignment" in ctxedit("bench", "answers", listed / "out", file).out
    assert ctxedit("bench", "answers", listed / "out", listed / "few.toml").code == 3
    assert ctxedit("bench", "study", listed).code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("none.toml", "--presets", "ddim"), 3, "none.toml"),
        (("{list}",), 2, "--presets"),
        (("{list}", "--presets", "nope"), 2, "nope"),
        (("{list}", "--presets", ","), 2, "no presets given"),
        (("{list}", "--presets", "ddim,ddim"), 2, "two presets"),
        (("{list}", "--presets", "ddim", "--compare", "ddim"), 2, "--compare"),
        (("{list}", "--presets", "ddim", "--compare", "ddim:sdedit"), 2, "sdedit"),
        (("{list}", "--presets", "ddim", "--set", "control.kind=video"), 2, "control map"),
        (("{list}", "--presets", "ddim", "--set", "edit.stops=3"), 2, "edit.stops"),
        (("{list}", "--presets", "ddim", "--limit", "0"), 2, "limit"),
        (("{few}", "--presets", "ddim"), 2, "unknown key"),
        (("{list}", "--presets", "ddim", "--sweep", "edit.stops=3"), 2, "edit.stops"),
        (("{list}", "--presets", "ddim", "--sweep", "edit.guidance"), 2, "KEY=A,B,C"),
        (("{list}", "--presets", "ddim", "--drawn", "3"), 2, "a list of your own"),
        (("--presets", "ddim", "--drawn", "-1"), 2, "--drawn"),
    ],
)
def test_refusals_load_and_write_nothing(ctxedit, listed, no_weights, tmp_path, arguments, code, said):
    names = {"list": listed / "clips.toml", "few": listed / "few.toml"}
    answer = ctxedit("bench", *(str(a).format(**names) for a in arguments), "--out", tmp_path / "out")
    assert answer.code == code, answer.err
    assert answer.err.startswith("error: ") and said in answer.err and "hint: " in answer.err
    assert not (tmp_path / "out").exists() and answer.out == ""


@pytest.mark.parametrize(("names", "said"), [(",", "no metric is named"), ("nope", "unknown metric 'nope'")])
def test_metrics_are_named_before_anything_is_read(ctxedit, tmp_path, no_weights, names, said):
    answer = ctxedit("bench", "--presets", "ddim", "--metrics", names, "--out", tmp_path / "out")
    assert answer.code == 2 and said in answer.err and not (tmp_path / "out").exists()


def test_a_comparison_where_all_fails_says_so(ctxedit, tmp_path, no_weights):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "clips.toml").write_text(LIST.format(clip="bad.mp4"))
    answer = ctxedit("bench", tmp_path / "clips.toml", "--presets", "ddim", "-o", tmp_path / "out")
    assert answer.code == 3 and "bad.mp4" in answer.err


def test_the_default_list_is_planned_without_writing(ctxedit, no_weights, tmp_path, monkeypatch):
    from ctxedit.bench import drawn

    monkeypatch.setattr(drawn, "FRAMES", 16)
    monkeypatch.chdir(tmp_path)
    plan = ctxedit("bench", "--presets", "ddim,tune-a-video", "--limit", 1, "--dry-run", "--json").table[
        "plan"
    ]
    assert plan["edits"] == 8 and plan["evaluations"]["tune-a-video"] > plan["evaluations"]["ddim"]
    assert not any(tmp_path.iterdir())


def test_the_list_of_compositions_is_planned_and_stands_alone(ctxedit, no_weights, tmp_path, monkeypatch):
    from ctxedit.bench import drawn

    monkeypatch.setattr(drawn, "FRAMES", 8)
    monkeypatch.chdir(tmp_path)
    arguments = ("bench", "--presets", "ddim", "--world", "compositions", "--limit", 1, "--dry-run", "--json")
    plan = ctxedit(*arguments, "--set", "clip.frames=2").table["plan"]
    assert plan["edits"] == 3, "an object, a colour, a number"
    (tmp_path / "clips.toml").write_text("")
    answer = ctxedit("bench", "clips.toml", "--presets", "ddim", "--world", "compositions")
    assert (
        answer.code == 2
        and "--world cannot be used with a list of your own" in answer.err
        and "hint: " in answer.err
    )


def test_a_grid_on_another_list_is_planned(ctxedit, no_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--presets", "ddim,contextdiff", "--drawn", 3, "--limit", 1, "--set", "clip.frames=2")
    grid = ("--sweep", "tune.steps=5,9", "--sweep", "edit.guidance=2,3")
    plan = ctxedit("bench", *arguments, *grid, "--dry-run", "--json").table["plan"]
    # Four targets: ddim at two points, having no tuning, contextdiff at four.
    assert plan["edits"] == 4 * (2 + 4)
    passes = plan["evaluations"]
    one, other = (f"contextdiff tune.steps={n} edit.guidance=2" for n in (5, 9))
    assert passes[other] - passes[one] == 4 and "ddim edit.guidance=3" in passes


def test_help_names_the_commands(ctxedit):
    text = ctxedit("bench").out
    assert all(name in text for name in ("run", "study", "answers"))
    options = ctxedit("bench", "--help").out
    assert options == ctxedit("bench", "run", "--help").out and "--presets" in options
    assert all(name in options for name in ("speed", "study", "answers"))
