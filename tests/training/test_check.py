"""The check of the built-in models, on a small slice."""

import numpy as np
import pytest
from tiny import make_pixel_upscaler

from ctxedit.errors import ConfigError
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic import scenes
from ctxedit.synthetic.judge import ANSWERS, classify, load_judge, truth
from ctxedit.training import results
from ctxedit.training.check import check
from ctxedit.training.checks.base import CheckConfig, CheckRow
from ctxedit.training.data import Scenes


def test_the_check_measures_every_part(tmp_path):
    few = {"clip": {"frames": 3}, "tune": {"steps": 1}, "invert": {"steps": 4}, "edit": {"steps": 4}}
    what = CheckConfig(count=3, pairs=1, work=tmp_path, settings=few)
    rows = {(r.part, r.figure): r for r in check(what)}
    parts = {"autoencoder", "clip", "captioner", "text-to-image", "editing", "controlnet"}
    if (BUILTIN_FOLDER / "upscaler").is_dir():
        parts.add("upscaler")
    assert {part for part, _ in rows} == {*parts, "composition-judge", "compositions"}
    assert rows["autoencoder", "PSNR, dB"].value > 24
    assert rows["clip", "falls when the background is wrong"].value >= 0.5
    shares = [r for r in rows.values() if not any(word in r.figure for word in ("dB", "less", "over"))]
    assert all(0 <= r.value <= 1 for r in shares)
    # The edit keeps what lies outside the object; an edit that redrew the clip would not.
    assert rows["editing", "PSNR outside the object, dB"].value > 12
    assert rows["editing", "round trip against the autoencoder's own, dB"].value > 15
    assert rows["editing", "what was asked is found, by the judge"].count == 3
    assert rows["controlnet", "F1 of edges, over that without a ControlNet"].value > 0.05


def test_another_wording_of_what_is_there_is_right():
    data = Scenes(7, test=True)
    meant = [scenes.caption(data.scene(i)[0]) for i in range(60)]
    twins = [(i, j) for i in range(60) for j in range(i) if meant[i] == meant[j]]
    drawn = [data[i] for i in range(60)]
    told = [one["caption"] for one in drawn]
    assert any(told[i] != told[j] for i, j in twins), "the draw has such twins"
    found = {r.figure: r for r in check(CheckConfig(count=60), ["clip"])}["right caption of 60"].value
    scorer = ClipScorer(BUILTIN_FOLDER / "clip")
    frames = np.stack([((one["image"].permute(1, 2, 0) + 1) * 127.5).round().byte() for one in drawn])
    near = (scorer.embed_images(frames) @ scorer.embed_texts(told).T).argmax(1)
    by_words = np.mean([told[int(j)] == told[i] for i, j in enumerate(near)])
    assert found > by_words


def test_an_upscaler_that_adds_nothing_is_bicubics_equal(tmp_path):
    make_pixel_upscaler(tmp_path / "upscaler", scale=0.0)
    rows = {r.figure: r for r in check(CheckConfig(tmp_path, count=2, pairs=1), ["upscaler"])}
    for figure in ("PSNR over bicubic's, dB", "PSNR over bicubic's, decoded frames, dB"):
        assert rows[figure].value == pytest.approx(0, abs=0.2) and not rows[figure].reached
        low, high = rows[figure].interval
        assert low <= rows[figure].value <= high
    warp = rows["warp error over bicubic's"]
    assert warp.value == pytest.approx(1, abs=0.1) and warp.lower and warp.reached


def test_only_the_parts_asked_for_are_checked():
    assert {r.part for r in check(CheckConfig(count=2), ["autoencoder"])} == {"autoencoder"}
    with pytest.raises(ConfigError, match="no check of 'kitchen'"):
        list(check(CheckConfig(), ["kitchen"]))


def test_results_are_kept_by_part(tmp_path):
    what = CheckConfig(weights=tmp_path)
    results.save([CheckRow("clip", "a", 0.5, 0.9, 10), CheckRow("autoencoder", "b", 31.0, 30.0, 10)], what)
    results.save([CheckRow("clip", "c", 0.7, 0.9, 20)], what)
    rows = [(r["part"], r["figure"], r["value"]) for r in results.load(tmp_path)]
    assert rows == [("autoencoder", "b", 31.0), ("clip", "c", 0.7)]
    assert results.load(tmp_path)[1]["files"].keys() == {"clip/model.safetensors"}
    (tmp_path / "check.json").write_text("{")
    assert results.load(tmp_path) == []


def test_the_judge_is_right_about_drawn_scenes():
    judge = load_judge(BUILTIN_FOLDER / "judge")
    rng = np.random.default_rng(5)
    drawn = [scenes.draw_scene(rng, pairs=0.0) for _ in range(60)]
    said = classify(judge, np.stack([scenes.render_frame(s, 0.5)[0] for s in drawn]))
    for question in ANSWERS:
        right = [a[question] == truth(s)[question] for a, s in zip(said, drawn, strict=True)]
        assert np.mean(right) > 0.9, question
