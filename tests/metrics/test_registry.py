"""The registry: what a metric may be, and a plugin of one file in eval, bench and JSON."""

import sys

import numpy as np
import pytest

from ctxedit.errors import ConfigError, CtxeditError
from ctxedit.metrics import Edit, Networks, metric, metrics
from ctxedit.metrics.registry import named, usual, value_of

PLUGIN = '''
from ctxedit.metrics import Edit, metric
from ctxedit.metrics.scores.clip import clip_text

@metric("brightness", title="grey level", needs="source", better="lower", decimals=2)
def brightness(edit: Edit) -> float:
    """how much brighter the edit is than its source"""
    return float(edit.frames.mean()) - float(edit.source.mean())
'''


@pytest.fixture()
def install(tmp_path, monkeypatch):
    """Installs a module as a plugin, as pip would: the module and its entry point."""

    def put(text, value="toy_metric", name="toy"):
        folder = tmp_path / f"site-{name}"
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / "toy_metric.py").write_text(text)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[ctxedit.metrics]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "toy_metric", raising=False)

    yield put
    sys.modules.pop("toy_metric", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "Bright ness"}, "lower-case"),
        ({"needs": "sauce"}, "sauce"),
        ({"where": "moon"}, "moon"),
        ({"doc": None}, "docstring"),
    ],
)
def test_a_wrong_definition_is_refused(change, message):
    def toy(edit):
        return 0.0

    toy.__doc__ = change.pop("doc", "a toy")
    facts = {"key": "toy", "title": "toy", "needs": "", "better": "higher", "decimals": 1} | change
    with pytest.raises(ValueError, match=message):
        metric(facts.pop("key"), **facts)(toy)


def test_a_plugin_is_found_while_it_is_installed_and_never_twice(install):
    before = metrics()
    assert "brightness" not in {one.key for one in before}
    install(PLUGIN)
    after = metrics()
    assert [one.key for one in after] == [*[one.key for one in before], "brightness"]
    assert "brightness" in {one.key for one in usual("bench")} and not after[-1].builtin
    install(PLUGIN.replace("brightness", "psnr"), name="other")
    with pytest.raises(ConfigError, match="'psnr'"):
        metrics()


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [("import nowhere", "toy_metric", "cannot be imported"), ("x = 1", "toy_metric", "defines no metric")],
)
def test_a_broken_plugin_is_named(install, text, value, message):
    install(text, value)
    with pytest.raises(ConfigError, match=f"toy.*{message}"):
        metrics()


def test_metrics_by_name():
    assert [one.key for one in named(["ssim", "clip_text"])] == ["clip_text", "ssim"]
    with pytest.raises(ConfigError, match="clip_txt") as error:
        named(["clip_txt"])
    assert "did you mean clip_text" in error.value.hint
    with pytest.raises(ConfigError, match="no metric"):
        named([])


def test_a_metric_without_its_inputs_does_not_apply_and_each_is_computed_once():
    calls = []

    @metric("toy", title="toy", needs="source", better="higher", decimals=1)
    def toy(edit):
        """a toy"""
        calls.append(edit)
        return 1.0

    frames = np.zeros((2, 8, 8, 3), np.uint8)
    assert Edit(frames, Networks(None)).score(toy) is None
    assert Edit(frames, Networks(None), source=frames[:1]).score(toy) is None, "another number of frames"
    edit = Edit(frames, Networks(None), source=frames)
    assert edit.score(toy) == edit.score(toy) == 1.0 and len(calls) == 1


def test_a_plugin_is_in_bench_tables_page_and_json(install):
    from ctxedit.bench import page, tables
    from ctxedit.bench.figures import Measure, Truth, identity
    from ctxedit.bench.listing import Clip, Target
    from ctxedit.bench.results import ResultRow
    from ctxedit.metrics.evaluate import evaluate
    from ctxedit.models.clip import ClipScorer
    from ctxedit.models.weights import BUILTIN_FOLDER

    assert identity() == []
    install(PLUGIN)
    assert identity() == [("brightness", "toy_metric", 1)], "edits measured without it are measured again"
    clip, target = Clip("one", None, "a cat", ()), Target("a dog")
    dark, light = np.full((2, 64, 64, 3), 60, np.uint8), np.full((2, 64, 64, 3), 90, np.uint8)
    scorer = ClipScorer(BUILTIN_FOLDER / "clip", name="builtin")
    found = Measure(scorer)(light, clip, target, Truth(dark))
    assert found["brightness"] == 30 and found["judge_asked"] is None and found["structure"] is not None
    row = ResultRow("k", "ddim", "one", "a dog", "other", "a cat", dict(found), {}, {}, None, None)
    (table,) = tables.summary([row], ["ddim"])
    assert table["figures"]["all"]["brightness"]["mean"] == 30
    text = tables.to_markdown([table], [], [])
    assert "| grey level |" in text and "30.00" in text and "how much brighter" in text
    assert "brightness" in tables.to_csv([table])
    from pathlib import Path

    assert '"key": "brightness"' in page.page(Path(), [row], ["ddim"], [])
    figures = evaluate(light, "a dog", Networks(scorer), dark, "a cat")
    assert figures.brightness == 30 == figures.table()["brightness"]


def test_a_plugin_that_fails_is_named(install):
    install(PLUGIN.replace("float(edit.source.mean())", "1 / 0"))
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(CtxeditError, match="brightness failed: ZeroDivisionError") as error:
        value_of(Edit(frames, Networks(None), source=frames), "brightness")
    assert "toy_metric" in error.value.hint


def test_a_broken_plugin_stops_a_run_before_it_begins(install):
    from types import SimpleNamespace

    from ctxedit.editing.session import Session

    install("import nowhere")
    session = SimpleNamespace(check_target=lambda t: None, tune=lambda: pytest.fail("tuned"))
    with pytest.raises(ConfigError, match="nowhere"):
        Session.edit_all(session, ["a cat"])


def test_a_plugin_is_in_eval(install, tmp_path):
    from asking import call

    from ctxedit.media.write import write_clip

    install(PLUGIN)
    for name, level in (("edit", 90), ("source", 60)):
        write_clip(tmp_path / f"{name}.mp4", np.full((2, 64, 64, 3), level, np.uint8), 8)
    ask = ("eval", "--video", tmp_path / "edit.mp4", "--prompt", "a dog", "-q")
    assert "grey level" in call(*ask).out.splitlines()[0]
    ask = (*ask, "--source", tmp_path / "source.mp4")
    assert call(*ask, "--json").table["brightness"] == pytest.approx(30, abs=1)
    assert "grey level" in call(*ask).out
    assert "how much brighter" in call("eval", "--metrics", "help").out
