"""The order of the stages, over a run folder, on a tiny Stable Diffusion folder and drawn clips."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ctxedit import config
from ctxedit.editing import plan
from ctxedit.editing.keys import Keys
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import Session
from ctxedit.editing.stages import invert_now
from ctxedit.errors import InputError, NumericsError
from ctxedit.media.write import write_clip
from ctxedit.models import weights
from ctxedit.models.adapter import ContextAdapter
from ctxedit.runs import Run
from ctxedit.synthetic import scenes

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    scene = scenes.draw_scene(np.random.default_rng(0), pairs=0.0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, scenes.render(scene, 12, 64)[0], Fraction(8))


@pytest.fixture(scope="module")
def settings(stable_diffusion):
    return config.load(
        "contextdiff",
        flags={
            "model": str(stable_diffusion),
            "clip_model": "builtin",
            "clip": {"frames": 4},
            "tune": {"steps": 3, "save_every": 1, "lr": 1e-3},
            "adapter": {"width": 32, "heads": 4, "blocks": 1},
            "invert": {"steps": 4},
            "edit": {"steps": 4, "guidance": 2.0},
            "fusion": {"max_resolution": 1.0},
        },
        environ={},
    )


def session(clip, settings, tmp_path, **options):
    return Session(Request(clip, settings, prompt=PROMPT, runs=tmp_path / "runs", **options))


class Counter(Reporter):
    """Which tasks ran, and optionally a blow at one step of one of them."""

    def __init__(self, kill=None):
        self.tasks, self.kill = [], kill

    def task(self, name, total, unit="step"):
        from contextlib import contextmanager

        @contextmanager
        def running():
            self.tasks.append(name.split()[0])

            def step(done, note=""):
                if self.kill == (name, done):
                    raise KeyboardInterrupt

            yield step

        return running()


def test_one_tuning_and_one_inversion_serve_every_target(clip, settings, tmp_path):
    counter = Counter()
    with session(clip, settings, tmp_path) as s:
        s.reporter = counter
        results = s.edit_all([TARGET, "a tiger walking in the snow"])
    assert counter.tasks == ["tune", "invert", "edit", "edit"]
    for result in results:
        assert all(f.exists() for f in (result.files.video, result.files.side_by_side, result.files.sheet))
        assert result.figures.clip_model == "builtin" and -1 <= result.figures.clip_text <= 1
    assert results[0].files.video != results[1].files.video


def test_an_edit_beside_others_is_the_edit_alone(clip, settings, tmp_path):
    """In bfloat16 the first edit keeps the source's branch for the second, which changes no bit of it."""
    half, targets = replace(settings, dtype="bfloat16"), (TARGET, "a tiger walking in the snow")
    with session(clip, half, tmp_path, targets=targets) as s:
        s.tune()
        first = s.edit(targets[0])
        assert s.parts.kept_source.whole and s.parts.kept_source.bytes
        beside = [np.array(one.frames) for one in (first, s.edit(targets[1]))]
        assert not s.parts.kept_source.bytes  # the last one needs it no more
    for target, frames in zip(targets, beside, strict=True):
        with session(clip, half, tmp_path, targets=(target,), overwrite=True) as s:
            assert np.array_equal(s.edit(target).frames, frames) and s.parts.kept_source is None


def test_finished_stages_are_not_run_again_and_changed_ones_are(clip, settings, tmp_path):
    with session(clip, settings, tmp_path) as s:
        (first,) = s.edit_all([TARGET])
    counter = Counter()
    with session(clip, settings, tmp_path) as s:
        s.reporter = counter
        (second,) = s.edit_all([TARGET])
    assert counter.tasks == [] and second.reused and second.files == first.files
    other = replace(settings, edit=replace(settings.edit, guidance=3.0))
    with session(clip, other, tmp_path) as s:
        s.reporter = counter
        s.edit(TARGET)
    assert counter.tasks == ["edit"]


def test_an_edit_after_reloading_equals_the_edit_of_the_tuning_process(clip, settings, tmp_path):
    with session(clip, settings, tmp_path) as s:
        run = s.tune()
        here = s.edited_frames(TARGET, s.invert())
    (run.folder / "inversion.safetensors").unlink()
    with Session(Request.of_run(Run(run.folder))) as s:
        there = s.edited_frames(TARGET, s.invert())
    assert np.array_equal(here, there)
    untuned = replace(settings, tune=replace(settings.tune, steps=0))
    with session(clip, untuned, tmp_path) as s:
        assert not np.array_equal(here, s.edited_frames(TARGET, s.invert()))


def test_a_reloaded_inversion_is_the_fresh_one_in_values_and_memory_format(clip, settings, tmp_path):
    """Networks round differently in each memory format, so the strides matter, too."""
    for form in (torch.contiguous_format, torch.channels_last):
        with session(clip, settings, tmp_path / str(form)) as s:
            s.parts.latents = s.parts.latents.contiguous(memory_format=form)
            s.tune()
            fresh = invert_now(s.parts, PROMPT)
            for reloaded in (s.invert(), s.invert()):
                assert torch.equal(reloaded, fresh) and reloaded.stride() == fresh.stride()
            edits = [s.edited_frames(TARGET, t) for t in (fresh, s.invert())]
        assert np.array_equal(*edits)


def test_a_prompt_captioned_or_given_is_the_same_tuning(clip, tmp_path):
    few = {"clip": {"frames": 2}, "tune": {"steps": 1}, "invert": {"steps": 2}, "edit": {"steps": 2}}
    captioned = Request(clip, config.load(flags=few, environ={}), runs=tmp_path / "runs")
    with Session(captioned) as s:
        run, text = s.tune(), s.prompt
    for request in (replace(captioned, prompt=text), captioned):
        counter = Counter()
        with Session(request, counter) as s:
            assert s.tune().folder == run.folder and counter.tasks == []
        assert plan.make(request, "tune").stages[-1].reused
    given = replace(captioned, prompt=text, runs=tmp_path / "given")
    with Session(given) as s:
        run = s.tune()
    for tasks in (["caption"], []):
        counter = Counter()
        with Session(replace(given, prompt=None), counter) as s:
            assert s.tune().folder == run.folder and counter.tasks == tasks
    with Session(replace(captioned, prompt=f"{text} again")) as s:
        assert s.run.folder not in (run.folder, *(tmp_path / "given").iterdir())


def test_a_captioned_run_of_an_older_version_is_found(clip, tmp_path):
    """Its identity was made without the prompt."""
    few = {"clip": {"frames": 2}, "tune": {"steps": 0}}
    request = Request(clip, config.load(flags=few, environ={}), runs=tmp_path)
    keys = Keys(request)
    old = Run.create(tmp_path, clip, request.preset, request.config, keys.identity(None))
    old.finish("caption", keys.caption(), [], text=PROMPT, model="builtin", by="clip")
    for asked in (request, replace(request, prompt=PROMPT)):
        assert Session(asked).run.folder == old.folder and Session(asked).prompt == PROMPT
    assert Session(replace(request, prompt=TARGET)).run.folder != old.folder


@pytest.fixture(scope="module")
def undisturbed(clip, settings, tmp_path_factory):
    """The frames of an edit that nothing interrupted."""
    with session(clip, settings, tmp_path_factory.mktemp("undisturbed")) as s:
        return s.edit(TARGET).frames


@pytest.mark.parametrize("kill", [("tune", 2), ("invert", 2), (f"edit “{TARGET}”", 3)])
def test_a_killed_run_goes_on_where_it_was(clip, settings, tmp_path, kill, undisturbed):
    with pytest.raises(KeyboardInterrupt), session(clip, settings, tmp_path) as s:
        s.reporter = Counter(kill)
        s.edit(TARGET)
    counter = Counter()
    with session(clip, settings, tmp_path) as s:
        s.reporter = counter
        assert np.array_equal(s.edit(TARGET).frames, undisturbed)
    stages = ["tune", "invert", "edit"]
    begun = stages.index(kill[0].split()[0])
    assert counter.tasks == stages[begun:], "what had finished is not done again"
    assert not list((tmp_path / "runs").rglob("*.tmp*"))


def test_outside_a_persons_mask_every_pixel_is_the_sources(clip, settings, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 20:44] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with session(clip, settings, tmp_path, mask=tmp_path / "mask.png") as s:
        edited = s.edited_frames(TARGET, s.invert())
        source = s.parts.prepared.frames
    outside = mask == 0
    assert np.array_equal(edited[:, outside], source[:, outside])
    assert not np.array_equal(edited[:, ~outside], source[:, ~outside])


def test_nan_stops_with_numerics_and_nothing_half_written(clip, settings, tmp_path, monkeypatch):
    with session(clip, settings, tmp_path) as s:
        real = s.parts.backbone.raw
        monkeypatch.setattr(s.parts.backbone, "raw", lambda *a: real(*a) * float("nan"))
        with pytest.raises(NumericsError):
            s.tune()
    assert not list((tmp_path / "runs").rglob("tuned.safetensors"))


def test_strange_pictures_and_unknown_words_are_said(clip, tmp_path):
    heard = []
    settings = config.load(
        flags={"clip": {"frames": 2}, "tune": {"steps": 0}, "invert": {"steps": 2}, "edit": {"steps": 2}},
        environ={},
    )
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    strange = write_clip(tmp_path / "noise.mp4", noise, Fraction(8))
    with session(strange, settings, tmp_path) as s:
        s.reporter = Reporter()
        s.reporter.warn = heard.append
        s.edit("a zeppelin on the beach")
    assert any("zeppelin" in line and "--model" in line for line in heard)
    assert any("do not recognise" in line and "--model" in line for line in heard)


@pytest.mark.parametrize("preset", config.preset_names())
def test_every_preset_runs(preset, clip, stable_diffusion, controlnet, tmp_path):
    flags = {
        "model": str(stable_diffusion),
        "clip_model": "builtin",
        "control": {"model": str(controlnet)},
        "clip": {"frames": 3},
        "tune": {"save_every": 1},
        "adapter": {"width": 32, "heads": 4, "blocks": 1},
        "invert": {"steps": 3},
        "edit": {"steps": 3},
        "fusion": {"mask_resolution": 1.0},
    }
    settings = config.load(preset, flags=flags, environ={})
    settings = replace(settings, tune=replace(settings.tune, steps=min(2, settings.tune.steps)))
    with Session(Request(clip, settings, preset, PROMPT, runs=tmp_path / "runs")) as s:
        result = s.edit(TARGET)
        tuned = s.run.folder / "tune" / "tuned.safetensors"
    assert result.files.video.exists()
    assert tuned.exists() == (settings.tune.steps > 0)


def test_a_changed_clip_is_noticed(clip, settings, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    with session(copy, settings, tmp_path) as s:
        run = s.tune()
    copy.write_bytes(clip.read_bytes() + b"x")
    with pytest.raises(InputError, match="changed"):
        Request.of_run(Run(run.folder))


def test_an_adapter_that_sees_through_clip(clip, settings, tmp_path, undisturbed):
    seen = replace(settings, adapter=replace(settings.adapter, image="clip"))
    with session(clip, seen, tmp_path) as s:
        frames = s.edit(TARGET).frames
        adapter = ContextAdapter.load(s.run.folder / "tune" / "adapter.safetensors")
    assert adapter.sizes["image_width"] > 0
    assert frames.shape == undisturbed.shape and not np.array_equal(frames, undisturbed)


def test_the_built_in_models_of_another_ctxedit_make_other_runs(clip, settings, monkeypatch, tmp_path):
    """What an earlier release tuned is not taken up by one that carries other weights."""

    def identities():
        both = (replace(settings, model="builtin"), settings)
        return [Keys(Request(clip, one)).identity(PROMPT) for one in both]

    before = identities()
    monkeypatch.setattr(weights, "_version", lambda folder, names: "another")
    builtin, folder = identities()
    assert builtin != before[0] and folder == before[1]


class TestFramesOfAStep:
    """``tune.frames``: each step sees that many consecutive frames, drawn anew."""

    def test_steps_see_as_many_frames_as_are_asked_for(self, clip, settings, tmp_path):
        few = config.merge(settings, {"tune": {"frames": 2, "steps": 4}})
        with session(clip, few, tmp_path) as work:
            seen = []
            work.parts.backbone.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
            work.tune()
            assert seen == [2] * 4
            seen.clear()
            work.invert()
            assert set(seen) == {4}
            drawn = [work.parts.draw(step) for step in range(24)]
            starts = {
                start
                for latents, view in drawn
                for start in range(3)
                if view.frames == 2 and torch.equal(latents, work.parts.latents[start : start + 2])
            }
            assert starts == {0, 1, 2}  # every place is drawn
            assert torch.equal(work.parts.draw(1)[0], drawn[1][0])  # by the step's number alone

    def test_the_plan_says_so(self, clip, settings, tmp_path):
        def tuning(frames):
            asked = config.merge(settings, {"tune": {"frames": frames}})
            rows = plan.make(Request(clip, asked, prompt=PROMPT, runs=tmp_path / "runs")).stages
            return next(row for row in rows if row.name == "tune")

        few, whole = tuning(2), tuning(0)
        assert (few.frames, whole.frames) == (2, 4) and few.evaluations == whole.evaluations == 3
        assert few.peak_bytes < whole.peak_bytes
        assert tuning(9) == whole  # more than there are is all
