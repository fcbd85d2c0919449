"""The comparison on the tiny Stable Diffusion folder: resuming, errors, what is measured, what is written."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from ctxedit import config
from ctxedit.bench import external, preview, report, results, runner, study, subject, tables
from ctxedit.bench.listing import Clip, Target
from ctxedit.bench.runner import Watcher
from ctxedit.bench.subject import Bench
from ctxedit.errors import ConfigError, InputError, OutputError
from ctxedit.media.write import write_clip
from ctxedit.synthetic import scenes

PROMPT = "a tiger walking on the beach"
FLAGS = {
    "clip_model": "builtin",
    "clip": {"frames": 2},
    "tune": {"save_every": 1},
    "adapter": {"width": 32, "heads": 4, "blocks": 1},
    "invert": {"steps": 2},
    "edit": {"steps": 2},
    "fusion": {"mask_resolution": 1.0},
}


class Log(Watcher):
    """What ran; and a blow when a task of one name is at a step."""

    def __init__(self, kill=None):
        self.tasks, self.rows, self.kill = [], [], kill

    def began(self, edits, done):
        self.counts = (edits, done)

    def finished(self, row):
        self.rows.append(row)

    def task(self, name, total, unit="step"):
        from contextlib import contextmanager

        @contextmanager
        def running():
            self.tasks.append(name)

            def step(done, note=""):
                if self.kill and name.startswith(self.kill[0]) and done == self.kill[1]:
                    raise KeyboardInterrupt

            yield step

        return running()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    scene = scenes.draw_scene(np.random.default_rng(0), pairs=0.0)
    frames, mask = scenes.render(scene, 4, 64)
    ideal, _ = scenes.render(replace(scene, background="snow"), 4, 64)
    grey = np.rint(mask[..., None] * 255).astype(np.uint8).repeat(3, -1)
    for name, pictures in (("clip", frames), ("mask", grey), ("ideal", ideal)):
        write_clip(folder / f"{name}.mp4", pictures, Fraction(8))
    return folder


@pytest.fixture(scope="module")
def clips(drawn):
    expect = {"background": "snow", "style": "plain"}
    snow = Target("a tiger walking in the snow", "background", None, drawn / "ideal.mp4", expect)
    panda = Target("a panda walking on the beach", "object")
    return (Clip("one", drawn / "clip.mp4", PROMPT, (snow, panda), drawn / "mask.mp4"),)


@pytest.fixture(scope="module")
def methods(stable_diffusion):
    def load(name, point):
        settings = config.load(name, flags={**FLAGS, "model": str(stable_diffusion)}, environ={})
        return replace(settings, tune=replace(settings.tune, steps=min(2, settings.tune.steps)))

    return preview.methods(["ddim", "contextdiff"], load)


@pytest.fixture(scope="module")
def done(clips, methods, tmp_path_factory):
    """One comparison that ran through: for those who only look at it."""
    bench, log = Bench(tmp_path_factory.mktemp("done"), clips, methods), Log()
    return bench, runner.run(bench, log), log


@pytest.fixture()
def bench(clips, methods, tmp_path):
    """A fresh one of a single target and the method that needs no tuning."""
    one = tuple(replace(clip, targets=clip.targets[:1]) for clip in clips)
    return Bench(tmp_path / "bench", one, methods[:1])


def of(rows, method):
    return {row.kind: row for row in rows if row.method == method}


def test_every_method_on_every_target_with_one_tuning_and_one_inversion(done):
    bench, rows, log = done
    assert log.counts == (4, 0) and all(row.error is None for row in rows)
    assert " ".join(name.split()[0] for name in log.tasks) == "invert edit edit tune invert edit edit"
    assert {row.method for row in rows} == {"source", "ideal", "ddim", "contextdiff"}
    ours = of(rows, "contextdiff")
    assert ours["object"].costs["tune"] == ours["background"].costs["tune"]
    assert ours["object"].costs["tune"]["evaluations"] == 2 == ours["object"].costs["invert"]["evaluations"]
    # Two branches a step; in a fused step the source's beside them, which blending keeps to the end.
    assert of(rows, "ddim")["object"].costs["edit"]["evaluations"] == 4
    assert ours["object"].costs["edit"]["evaluations"] > 4
    assert of(rows, "ddim")["object"].facts["trained"] == 0 < ours["object"].facts["trained"]
    assert all((bench.out / row.video).is_file() for row in rows)
    assert all(
        row.costs["edit"]["seconds"] > 0 and row.costs["edit"]["peak_bytes"] > 1e8 for row in log.rows[3:]
    )
    source, ideal = of(rows, "source")["background"], of(rows, "ideal")["background"]
    assert source.figures["psnr_kept"] == 100 == ideal.figures["psnr_ideal"]
    assert ideal.figures["judge_asked"] > source.figures["judge_asked"] == 0
    assert source.figures["structure"] == 0 < ideal.figures["structure"]
    assert "object" not in of(rows, "ideal"), "there is no true edit to show"
    # What should stay is inside the mask for a background, outside it for an object.
    assert ideal.figures["psnr_kept"] > 20 and ideal.figures["psnr_kept"] > ideal.figures["psnr"] + 5


def test_a_second_call_does_nothing(done):
    bench, rows, _ = done
    log = Log()
    assert runner.run(bench, log) == rows and log.counts == (4, 4) and log.tasks == [] == log.rows
    assert (preview.make(bench).done, preview.make(bench).evaluations) == (4, {})


@pytest.mark.parametrize("method", ["ddim", "source"])
def test_a_damaged_video_is_written_again(done, tmp_path, method):
    bench, rows, _ = done
    out = shutil.copytree(bench.out, tmp_path / "out")
    row = next(row for row in rows if row.method == method)
    video, log = out / row.video, Log()
    whole = video.read_bytes()
    video.write_bytes(whole[:100])
    again = runner.run(replace(bench, out=out), log)
    assert video.read_bytes() == whole and log.tasks == []
    assert [one.figures for one in again] == [one.figures for one in rows]


def test_other_settings_do_what_depends_on_them(bench):
    runner.run(bench)
    (ddim,) = bench.methods
    guided = replace(ddim, config=replace(ddim.config, edit=replace(ddim.config.edit, guidance=2.0)))
    other = replace(bench, methods=(guided,))
    assert preview.make(other).done == 0
    for changed in (other, replace(bench, overwrite=True)):
        log = Log()
        runner.run(changed, log)
        assert [name.split()[0] for name in log.tasks] == ["edit"], "the inversion is of the same settings"


@pytest.mark.parametrize(("kill", "finished"), [(("tune", 1), 0), (("edit “a panda", 1), 1)])
def test_an_interrupted_comparison_goes_on_where_it_was(done, tmp_path, kill, finished):
    _, whole, _ = done
    bench = replace(done[0], out=tmp_path, methods=done[0].methods[1:])
    with pytest.raises(KeyboardInterrupt):
        runner.run(bench, Log(kill))
    assert preview.make(bench).done == finished
    log = Log()
    rows = runner.run(bench, log)
    assert log.counts == (2, finished) and len(of(log.rows, "contextdiff")) == 2 - finished
    assert ("tune" in log.tasks) == (kill[0] == "tune")
    expected = [row.figures for row in whole if row.method == "contextdiff"]
    assert [row.figures for row in rows if row.method == "contextdiff"] == expected, "bit for bit"
    # The step that was being made when it was killed was made twice, or had been saved.
    assert of(rows, "contextdiff")["object"].costs["tune"]["evaluations"] in (2, 3)


def test_the_table_says_of_every_machine_that_edits_were_made_on(done, tmp_path):
    bench, rows, _ = done
    bench = replace(bench, out=tmp_path)
    report.write(bench, rows)
    assert "Model epsilon on cpu in float32, " in (tmp_path / "table.md").read_text()
    gpu = {"device": "NVIDIA H100", "dtype": "bfloat16"}
    moved = [replace(r, facts={**r.facts, **gpu}) if r.method == "contextdiff" else r for r in rows]
    report.write(bench, moved)
    count = sum(row.method == "contextdiff" for row in rows)
    assert f"NVIDIA H100 in bfloat16 ({count} edits)" in (tmp_path / "table.md").read_text()


def test_an_edit_by_other_weights_is_another(done, monkeypatch):
    bench, clip = done[0], done[0].clips[0]
    method = bench.methods[0]

    def key():
        return bench.key(clip, clip.targets[0], method.label, subject.settings_for(clip, method))

    before = key()
    assert key() == before
    for name in ("identity", "part_identity", "judge_identity"):
        with monkeypatch.context() as patched:
            patched.setattr(subject, name, lambda *which: "another")
            assert key() != before


def test_a_clip_that_fails_becomes_rows_and_the_rest_go_on(bench, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    both = replace(bench, clips=(replace(bench.clips[0], name="broken", path=broken), *bench.clips))
    seen = preview.make(both)
    assert set(seen.failing) == {"broken"} and (seen.edits, seen.done) == (2, 0)
    rows = runner.run(both)
    (bad,) = (row for row in rows if row.clip == "broken")
    assert "broken.mp4" in bad.error and "\n" not in bad.error
    assert [row.method for row in rows if row.error is None] == ["source", "ideal", "ddim"]
    log = Log()
    runner.run(both, log)
    assert log.counts == (2, 1) and len(log.rows) == 1, "what failed is tried again, nothing else"
    whole = report.write(both, rows)
    assert len(whole["failed"]) == 1 and "broken.mp4" in (both.out / "table.md").read_text()
    assert whole["methods"][-1]["failed"] == 1 == whole["methods"][-1]["edits"]
    assert "broken.mp4" in (both.out / "index.html").read_text()
    with pytest.raises(InputError, match="no clip of the list"):
        preview.make(replace(both, clips=both.clips[:1]))


def test_no_work_is_done_for_edits_that_are_known_to_fail(bench, methods, drawn, monkeypatch):
    """A prompt that is too long, a mask that does not fit: found by the plan, and not after the tuning."""
    monkeypatch.setattr(runner.Serving, "__call__", lambda *a: pytest.fail("work was done"))
    write_clip(drawn / "wide.mp4", np.full((4, 32, 64, 3), 255, np.uint8), Fraction(8))
    long = Target("a tiger " * 100)
    bad = replace(bench.clips[0], targets=(long, Target("a panda", mask=drawn / "wide.mp4")))
    both = replace(bench, clips=(bad, replace(bad, name="two", targets=(long,))), methods=methods[1:])
    with pytest.raises(InputError, match=r"no clip of the list .*; one, .*: the prompt has \d+ tok"):
        preview.make(both)
    good = replace(bench.clips[0], name="good")
    seen = preview.make(replace(both, clips=(*both.clips, good)))
    assert [name.split(",")[0] for name in seen.failing] == ["one", "one", "two"]
    assert seen.evaluations and "mask" in list(seen.failing.values())[1]
    log = Log()
    rows = runner.run(both, log, refused=seen.refused)
    assert log.counts == (3, 0) and rows == log.rows and not log.tasks
    assert ["tokens" in row.error for row in rows] == [True, False, True]


def test_an_edit_that_fails_leaves_the_others_and_a_full_disk_ends_all(bench, clips, monkeypatch):
    from ctxedit.editing import stages

    real = stages.edited_frames

    def raising(error, target_word):
        def edited(parts, prompt, target, trajectory):
            if target_word in target:
                raise error
            return real(parts, prompt, target, trajectory)

        monkeypatch.setattr(stages, "edited_frames", edited)

    both = replace(bench, clips=clips)
    raising(RuntimeError("something\nodd"), "panda")
    errors = {(row.method, row.kind): row.error for row in runner.run(both)}
    assert errors["ddim", "object"] == "RuntimeError: something odd" and errors["ddim", "background"] is None
    raising(OutputError("the disk is full"), "panda")
    with pytest.raises(OutputError):
        runner.run(both)


def test_a_control_that_a_clip_lacks_is_refused_before_weights(bench, drawn, monkeypatch):
    from ctxedit.models.backbones import stable_diffusion

    monkeypatch.setattr(stable_diffusion, "parts", lambda *a, **k: pytest.fail("weights were loaded"))
    (first,) = bench.methods
    takes = replace(first, config=replace(first.config, control=replace(first.config.control, kind="video")))
    with pytest.raises(ConfigError, match="takes a control map, and the clip 'one' has none"):
        preview.make(replace(bench, methods=(takes,)))
    brings = replace(bench.clips[0], control=drawn / "mask.mp4")
    assert subject.settings_for(brings, takes).control.map == str(drawn / "mask.mp4")
    assert subject.settings_for(brings, first) == first.config


def test_presets_by_name_and_file(tmp_path):
    load = lambda name, point: config.load(name, environ={})  # noqa: E731
    (tmp_path / "mine.toml").write_text('about = "mine"\n')
    found = preview.methods(["ddim", str(tmp_path / "mine.toml")], load)
    assert [m.label for m in found] == ["ddim", "mine"]
    for bad in ([], ["ddim", "ddim"], ["nope"]):
        with pytest.raises(ConfigError):
            preview.methods(bad, load)
    (tmp_path / "source.toml").write_text("")
    with pytest.raises(ConfigError, match="source"):
        preview.methods([str(tmp_path / "source.toml")], load)


def test_what_is_written_is_read_again(done):
    bench, rows, _ = done
    whole = report.write(bench, rows, [("ddim", "contextdiff")])
    assert report.edits_of(report.read(bench.out)) == rows
    (change,) = whole["differences"]
    wanted = np.mean([
        of(rows, "contextdiff")[k].figures["clip_text"] - of(rows, "ddim")[k].figures["clip_text"]
        for k in ("object", "background")
    ])  # fmt: skip
    assert change["figures"]["all"]["clip_text"]["mean"] == pytest.approx(wanted)
    assert json.loads((bench.out / "table.json").read_text())["methods"][2]["method"] == "ddim"
    lines = (bench.out / "table.csv").read_text().splitlines()
    assert lines[0].startswith("method,kind,figure") and any(s.startswith("ddim,object,psnr,") for s in lines)
    assert "| contextdiff |" in (bench.out / "costs.md").read_text()
    assert tables.adapter_pairs(["a", "b", "a+adapter"]) == [("a", "a+adapter")]
    assert tables.adapter_pairs(["c", "c-adapter", "d-adapter"]) == [("c-adapter", "c")]
    with pytest.raises(InputError, match="holds no comparison"):
        report.read(bench.out / "runs")


def test_a_metric_that_is_asked_for_is_measured_too_and_missed_before_the_first_edit(
    bench, tmp_path, monkeypatch
):
    from transformers import ViTConfig, ViTModel

    from ctxedit.errors import WeightsError
    from ctxedit.metrics.scores import learned

    runner.run(bench)
    asked = replace(bench, metrics=("dino_structure",), offline=True)
    assert preview.make(asked).done == 0
    log = Log()
    with pytest.raises(WeightsError, match="dino"):
        runner.run(asked, log)
    assert log.tasks == []
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes), False).save_pretrained(tmp_path / "vit")
    monkeypatch.setattr(learned, "DINO", str(tmp_path / "vit"))
    rows = runner.run(asked, log)
    assert all(row.figures["dino_structure"] >= 0 for row in rows) and len(rows) == 3
    assert log.tasks == [], "nothing is tuned, inverted or edited again"
    assert "DINO structure" in (report.write(asked, rows) and (bench.out / "table.md").read_text())


def test_another_methods_videos_are_measured_beside(done, tmp_path):
    """Of its two targets one is there, as the true edit's pixels; the other is a row with its error."""
    bench, rows, _ = done
    out = shutil.copytree(bench.out, tmp_path / "out")
    (tmp_path / "theirs" / "some" / "one").mkdir(parents=True)
    shutil.copy(bench.clips[0].targets[0].ideal, tmp_path / "theirs" / "some" / "one" / "0.mp4")
    theirs = external.parse(f"theirs={tmp_path / 'theirs'}")
    both, log = replace(bench, out=out, externals=(theirs,)), Log()
    found = {row.kind: row for row in runner.run(both, log) if row.method == "theirs"}
    assert log.tasks == [], "nothing is tuned, inverted or edited"
    ideal = of(rows, "ideal")["background"].figures
    assert found["background"].figures == ideal and (out / found["background"].video).is_file()
    assert "no video of theirs" in found["object"].error and "theirs" in found["object"].error
    whole = report.write(both, runner.rows_of(both, results.Results(out)))
    assert [t["method"] for t in whole["methods"]] == ["source", "ideal", "theirs", "ddim", "contextdiff"]
    assert "| theirs | 1 (1 failed) |" in (out / "table.md").read_text()
    assert "theirs" in (out / "index.html").read_text()
    text = (out / "table.tex").read_text()
    assert text.count("\\midrule") == 2 and "\\textbf" in text and text.rstrip().endswith("\\end{tabular}")
    questions = study.draw_questions(study.rows_in(out), 5, 0, [], "theirs")
    assert {q.target for q in questions} == {bench.clips[0].targets[0].prompt}


@pytest.mark.parametrize(("text", "error"), [("theirs", ConfigError), ("a=/nowhere", InputError)])
def test_an_external_method_that_is_none_is_refused(text, error):
    with pytest.raises(error, match="--external"):
        external.parse(text)


@pytest.mark.parametrize(
    "name", ["one/0.mp4", "one/background.gif", "a/one/a-tiger-walking-in-the-snow.mp4",
             "one-a-tiger-walking-in-the-snow.webm", "b/one/0/00000.jpg"],
)  # fmt: skip
def test_names_that_an_external_video_may_have(clips, tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    (clip,) = clips
    method = external.External("theirs", tmp_path)
    wanted = file.parent if file.suffix == ".jpg" else file
    assert method.find(clip, clip.targets[0]) == wanted and method.find(clip, clip.targets[1]) is None
