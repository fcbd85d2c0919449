"""The pages: what stands in them, and that they work in a browser from the disk."""

import json
import re
import shutil
import time
from fractions import Fraction

import numpy as np
import pytest
from browser import AVAILABLE, Browser

from ctxedit.bench import page, study
from ctxedit.bench.results import ResultRow
from ctxedit.errors import ConfigError, InputError, OutputError
from ctxedit.media.write import write_clip

ODD = 'a "cat" </script><script>document.title = "broken"</script> & co'
browser_there = pytest.mark.skipif(not AVAILABLE, reason="no Chromium with its driver on this machine")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows of two methods, references and a failure, with small videos, as a comparison leaves them."""
    folder = tmp_path_factory.mktemp("made")
    rows = []
    for number, (clip, target, kind) in enumerate(
        [("one", ODD, "object"), ("one", "a cat in snow", "background"), ("two", "a dog", "object")]
    ):
        for method in ("source", "ideal", "ddim", "secret-method"):
            if (method, clip) == ("ideal", "two"):
                continue
            failed = (method, clip) == ("ddim", "two")
            video = None if failed else f"runs/{clip}-{method}/{number}.mp4"
            if video:
                grey = np.full((4, 32, 48, 3), 40 + 50 * number, np.uint8)
                grey[:, :, : 8 * (1 + len(rows) % 5)] = 250
                write_clip(folder / video, grey, Fraction(8))
            figures = {} if failed else {"clip_text": 0.25 * (number + 1), "psnr": 20.0, "judge_asked": None}
            costs = {"edit": {"seconds": 1.5, "peak_bytes": 1, "evaluations": 2}}
            rows.append(
                ResultRow(
                    f"{number}{method}",
                    method,
                    clip,
                    target,
                    kind,
                    f"a {clip}",
                    figures,
                    costs,
                    {},
                    video,
                    "clip is broken" if failed else None,
                )
            )
    return folder, rows


@pytest.fixture()
def bench(made, tmp_path):
    """A copy of it, to write into."""
    folder, rows = made
    return shutil.copytree(folder, tmp_path / "bench"), list(rows)


def data_in(html):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(found)


def test_the_page_holds_every_edit_and_asks_nobody(bench):
    out, rows = bench
    html = page.page(out, rows, ["ddim", "secret-method"], ["Three targets."])
    data = data_in(html)
    assert not re.search(r"https?://|//[a-z]+\.|@import|<link", html.replace("\\/", "/"))
    assert [[cell["method"] for cell in item["cells"]] for item in data["items"]] == [
        ["source", "ddim", "secret-method", "ideal"],
        ["source", "ddim", "secret-method", "ideal"],
        ["source", "ddim", "secret-method"],
    ]
    assert data["items"][0]["target"] == ODD and html.count("</script>") == 2
    assert data["items"][2]["cells"][1]["error"] == "clip is broken"
    assert len(data["videos"]) == len([r for r in rows if r.video])
    assert all(url.startswith("data:video/mp4;base64,") for url in data["videos"].values())


def test_large_videos_are_linked(bench, monkeypatch):
    out, rows = bench
    monkeypatch.setattr(page, "INLINE_BYTES", 10)
    data = data_in(page.page(out, rows, ["ddim", "secret-method"], []))
    assert all((out / url).is_file() for url in data["videos"].values())


@browser_there
@pytest.mark.parametrize("inline", [True, False])
def test_the_page_works_from_the_disk(bench, monkeypatch, inline):
    out, rows = bench
    if not inline:
        monkeypatch.setattr(page, "INLINE_BYTES", 10)
    html = out / "index.html"
    html.write_text(page.page(out, rows, ["ddim", "secret-method"], ["Three targets."]))
    with Browser(out) as browser:
        browser.open(html)
        playing = """
            const wait = ms => new Promise(done => setTimeout(done, ms));
            for (let i = 0; i < 50; i++) {
              const videos = [...document.querySelectorAll("video")].filter(v => v.src);
              const ready = videos.filter(v => v.readyState >= 2 && v.videoWidth === 48);
              if (videos.length && ready.length === videos.length) return videos.length;
              await wait(100);
            }
            return 0;"""
        assert browser.run(f"return (async () => {{{playing}}})()") >= 4
        assert browser.run("return document.title") == "ctxedit: results"
        titles = "return [...document.querySelectorAll('article h2')].map(x => x.textContent)"
        assert browser.run(titles) == [ODD, "a cat in snow", "a dog"]
        choose = """const s = document.getElementById(arguments[0]); s.value = arguments[1];
                    s.dispatchEvent(new Event("change"));"""
        browser.run(choose, "kind", "background")
        assert browser.run(titles) == ["a cat in snow"]
        mean = "return [...document.querySelectorAll('#means tbody tr')].map(r => r.cells[1].textContent)"
        assert browser.run(mean) == ["0.500"] * 4
        browser.run(choose, "clip", "two")
        assert browser.run(titles) == [] and "No edits match" in browser.run("return document.body.innerText")
        browser.run(choose, "kind", "")
        shown = "return [...document.querySelectorAll('figure')].map(x => x.dataset.method)"
        assert browser.run(shown) == ["source", "ddim", "secret-method"]
        assert "clip is broken" in browser.run("return document.getElementById('edits').innerText")
        browser.run("document.querySelector('input[value=ddim]').click()")
        assert browser.run(shown) == ["source", "secret-method"]
        text = browser.run("return document.querySelector('figure:last-child').innerText")
        assert "0.750" in text and "1.5 s" in text
        browser.run("document.getElementById('play').click()")
        assert browser.run("return [...document.querySelectorAll('video')].every(v => v.paused)")
        assert browser.requests() == [] and browser.complaints() == []


def test_a_study_is_anonymous_seeded_and_balanced(bench):
    out, rows = bench
    questions = study.draw_questions(rows, 5, 3)
    assert questions == study.draw_questions(rows, 5, 3) and len(questions) == 2, (
        "both have two edits in common"
    )
    sides = {tuple(q.a for q in study.draw_questions(rows, 5, seed)) for seed in range(20)}
    assert len({a for pair in sides for a in pair}) == 2 < len(sides), "either is shown on either side"
    html = study.write(out, questions, rows).read_text()
    assert "secret" not in html and "ddim" not in html and not re.search(r"https?://", html)
    assert {q["target"] for q in data_in(html)["questions"]} == {ODD, "a cat in snow"}
    study.write(out, questions, rows)
    with pytest.raises(OutputError, match="another study"):
        study.write(out, questions[:1], rows)
    study.write(out, questions[:1], rows, overwrite=True)


def test_large_videos_of_a_study_are_copied_without_names(bench, monkeypatch):
    out, rows = bench
    monkeypatch.setattr(page, "INLINE_BYTES", 10)
    html = study.write(out, study.draw_questions(rows, 1, 0), rows)
    urls = data_in(html.read_text())["videos"]
    assert len(urls) == 3 and all((html.parent / url).is_file() and "secret" not in url for url in urls)


def test_methods_may_be_chosen(bench):
    _, rows = bench
    third = [ResultRow(**{**r.table(), "method": "third"}) for r in rows if r.method == "ddim"]
    pairs = {frozenset((q.a, q.b)) for q in study.draw_questions([*rows, *third], 1, 0)}
    assert len(pairs) == 3
    against = study.draw_questions([*rows, *third], 1, 0, against="third")
    assert len(against) == 2 and all("third" in (q.a, q.b) for q in against)
    only = study.draw_questions([*rows, *third], 1, 0, presets=["third", "ddim"])
    assert [{q.a, q.b} for q in only] == [{"third", "ddim"}]
    with pytest.raises(ConfigError, match="no edits here"):
        study.draw_questions(rows, 1, 0, presets=["nope"])
    with pytest.raises(InputError, match="in common"):
        study.draw_questions(rows, 1, 0, presets=["ddim"])


def answers_of(out, rater, prefer):
    """A file of answers: the text question by ``prefer``, the other always the first of the two shown."""
    key = json.loads((out / "study" / "key.json").read_text())
    found = [
        {"id": q["id"], "text": "a" if q["a"] == prefer else "b", "temporal": "a"} for q in key["questions"]
    ]
    file = out / f"{rater}.json"
    file.write_text(json.dumps({"study": key["study"], "rater": rater, "answers": found}))
    return file


def test_answers_become_rates(bench):
    out, rows = bench
    questions = study.draw_questions(rows, 5, 3)
    study.write(out, questions, rows)
    files = [answers_of(out, name, "ddim" if name != "d" else "secret-method") for name in "abcd"]
    text, temporal = sorted(study.count_answers(out, files), key=lambda p: p.criterion != "text")
    assert (text.first, text.second, text.wins, text.count) == ("ddim", "secret-method", 6, 8)
    assert text.share == 0.75 and (text.low, text.high) == pytest.approx((0.4093, 0.9285), abs=1e-4)
    assert temporal.wins == 4 * sum(q.a == "ddim" for q in questions)
    written = study.write_preferences(out, [text, temporal], 4).read_text()
    assert "| ddim | secret-method | 75% [41%, 93%] |" in written and "4 people" in written


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda blob: blob.update(study="other"), "no answers to this study"),
        (lambda blob: blob["answers"][0].update(text="c"), "is not an answer"),
        (lambda blob: blob["answers"][0].pop("temporal"), "is not an answer"),
        (lambda blob: blob["answers"][0].update(id="zzz"), "is not an answer"),
        (lambda blob: blob["answers"].append(blob["answers"][0]), "twice"),
        (lambda blob: blob.update(rater="one"), "same rater"),
        (lambda blob: blob.pop("rater"), "holds no answers"),
    ],
)
def test_bad_answers_are_refused(bench, change, said):
    out, rows = bench
    with pytest.raises(InputError, match="holds no study"):
        study.count_answers(out, [])
    study.write(out, study.draw_questions(rows, 5, 3), rows)
    one, two = answers_of(out, "one", "ddim"), answers_of(out, "two", "ddim")
    assert len(study.count_answers(out, [one, two])) == 2
    blob = json.loads(two.read_text())
    change(blob)
    two.write_text(json.dumps(blob))
    with pytest.raises(InputError, match=said):
        study.count_answers(out, [one, two])


@browser_there
def test_a_person_answers_and_downloads(bench):
    out, rows = bench
    questions = study.draw_questions(rows, 5, 3)
    path = study.write(out, questions, rows)
    with Browser(out) as browser:
        browser.open(path)
        click = "document.querySelector(arguments[0]).click()"
        assert browser.run("return document.getElementById('next').disabled")
        for question in questions:
            assert browser.run("return document.getElementById('target').textContent") == question.target
            browser.run(click, f"input[name=text][value={'a' if question.a == 'ddim' else 'b'}]")
            assert browser.run("return document.getElementById('next').disabled"), "both are asked for"
            browser.run(click, "input[name=temporal][value=b]")
            browser.run(click, "#next")
        browser.open(path)
        assert "All 2 answered" in browser.run("return document.body.innerText"), "kept over a reload"
        browser.run(click, "#download")
        deadline = time.monotonic() + 10
        while not (files := list(out.glob("answers-*.json"))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert browser.requests() == [] and browser.complaints() == []
    text = next(p for p in study.count_answers(out, files) if p.criterion == "text")
    assert (text.first, text.wins, text.count) == ("ddim", 2, 2)
