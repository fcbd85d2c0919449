"""``ctxedit batch`` as a person has it: every form of list, several workers, failures, resuming, refusals."""

import gc
import json
import shutil
import weakref
from collections import Counter

import pytest
from asking import TARGET, call
from diffusers import UNet2DConditionModel
from transformers import Blip2ForConditionalGeneration, CLIPModel, CLIPTextModel

from ctxedit.editing.session import Session

PROMPT, SNOW = "a tiger walking on the beach", "a tiger walking in the snow"
SMALL = ("--frames", 3, "--stride", 1, "--steps", 2, "--tune-steps", 2, "--threads", 1)


@pytest.fixture(scope="session")
def listed(clip, tmp_path_factory):
    """A CSV of a good clip with two targets and a broken one."""
    folder = tmp_path_factory.mktemp("batch")
    shutil.copy(clip, folder / "tiger.mp4")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    lines = ["path,prompt,target", f"tiger.mp4,{PROMPT},{TARGET}", f"tiger.mp4,{PROMPT},{SNOW}"]
    (folder / "list.csv").write_text("\n".join([*lines, f"broken.mp4,{PROMPT},{SNOW}"]) + "\n")
    return folder


@pytest.fixture(scope="session")
def done(listed):
    arguments = ("batch", listed / "list.csv", *SMALL, "-o", listed / "out")
    return arguments, call(*arguments, "--json")


def videos(out):
    return {path.name: path.read_bytes() for path in (out / "edits").iterdir()}


def test_a_batch_from_end_to_end_lists_what_failed_and_does_the_rest(done, listed):
    _, answer = done
    assert answer.code == 1 and "error: 1 of 3 edits failed" in answer.err and "retry" in answer.err
    assert [one["target"] for one in answer.table["edits"]] == [TARGET, SNOW]
    (failed,) = answer.table["failed"]
    assert failed["clip"] == "broken" and "broken.mp4" in failed["error"]
    out = listed / "out"
    names = sorted(videos(out))
    assert len(names) == 2 and names[0].startswith("tiger-a-panda") and names[0].endswith(".mp4")
    assert [one["video"] for one in answer.table["edits"]] == [str(out / "edits" / name) for name in names]
    report = json.loads((out / "report.json").read_text())
    assert [one["figures"]["clip_text"] is not None for one in report["edits"]] == [True, True]
    text = (out / "report.md").read_text()
    assert "## Failed" in text and "| broken |" in text and f"edits/{names[1]}" in text
    page = (out / "index.html").read_text()
    assert "Batch of edits" in page and "data:video/mp4" in page and '"source"' in page


def test_it_is_resumed_and_what_failed_is_tried_again(done, listed, ctxedit, no_weights):
    arguments, _ = done
    before = videos(listed / "out")
    answer = ctxedit(*arguments)
    assert answer.code == 1 and "3 edits, 2 of them done before" in answer.err
    assert videos(listed / "out") == before and "[3/3" in answer.err
    plan = ctxedit(*arguments, "--dry-run")
    assert plan.code == 0 and "3, 2 of them done" in plan.out and "1 thread" in plan.out
    assert plan.out.count("broken") >= 1


def test_workers_give_what_one_process_gives_bit_for_bit(done, listed, tmp_path):
    """Two clips, so that both workers have one; the reports agree in all but times."""
    shutil.copy(listed / "tiger.mp4", tmp_path / "again.mp4")
    shutil.copy(listed / "tiger.mp4", tmp_path / "tiger.mp4")
    entries = [
        {"path": "tiger.mp4", "prompt": PROMPT, "targets": [TARGET, {"prompt": SNOW}]},
        {"path": "again.mp4", "prompt": PROMPT, "target": SNOW},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    answer = call("batch", tmp_path / "list.jsonl", *SMALL, "--workers", 2, "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    # Whichever worker is up first takes the first clip.
    assert {"worker 1", "worker 2"} <= {line.split(":")[0] for line in answer.err.splitlines()}
    one, two = videos(listed / "out"), videos(tmp_path / "out")
    assert {name: two[name] for name in one} == one
    figures = [
        {e["target"]: e["figures"] for e in json.loads((out / "report.json").read_text())["edits"]}
        for out in (listed / "out", tmp_path / "out")
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        ("path,target\n", (), 2, "lists no clips"),
        ("path,target,colour\nx,y,z\n", (), 2, "unknown column 'colour'"),
        ("target\nx\n", (), 2, "no column path"),
        ("path,target\nnone.mp4,a panda\n", (), 3, "none.mp4 does not exist"),
        ("path\ntiger.mp4\n", (), 2, "has no targets"),
        ("path,target\ntiger.mp4,a panda,more\n", (), 2, "as many cells as the header"),
        ("path,prompt,target\ntiger.mp4,a,x\ntiger.mp4,b,y\n", (), 2, "another prompt"),
        ("path,target\ntiger.mp4,a panda\ntiger.mp4,a panda\n", (), 2, "occurs twice"),
        ("path,target\ntiger.mp4,a panda\n", (" ",), 3, "target is empty"),
        ("path,target\ntiger.mp4,a panda\n", ("--workers", "0"), 2, "workers"),
        ("path,target\ntiger.mp4,a panda\n", ("--preset", "nope"), 2, "nope"),
        ("path,target\ntiger.mp4,a panda\n", ("--workers", "100000"), 5, "of memory"),
        ("path,target\ntiger.mp4,a panda\n", ("--gpus", "1"), 2, "add --ray"),
        ("path,target\ntiger.mp4,a panda\n", ("--ray", "nonsense"), 2, "is not an address"),
        ("path,target\ntiger.mp4,a panda\n", ("--ray", "127.0.0.1:1"), 5, "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_refusals_come_before_any_weight(listed, ctxedit, no_weights, tmp_path, text, arguments, code, said):
    if "--ray" in arguments:
        pytest.importorskip("ray")
    shutil.copy(listed / "tiger.mp4", tmp_path / "tiger.mp4")
    (tmp_path / "list.csv").write_text(text)
    answer = ctxedit("batch", tmp_path / "list.csv", *arguments, "-o", tmp_path / "out")
    assert answer.code == code and said in answer.err, answer.err
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_without_ray_it_is_said_how_to_get_it(listed, ctxedit, no_weights, tmp_path, monkeypatch):
    from ctxedit.executors import cluster

    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    answer = ctxedit("batch", listed / "list.csv", "--ray", "auto", "-o", tmp_path / "out")
    assert answer.code == 2 and answer.err.splitlines()[-2:] == [
        "error: Ray is not installed", "hint: pip install 'ctxedit[ray]', or use --workers N",
    ]  # fmt: skip


def test_networks_are_loaded_once_for_all_clips_and_sessions_need_no_collector(
    clip, tmp_path, ctxedit, monkeypatch
):
    loaded, sessions = Counter(), []
    for cls in (Blip2ForConditionalGeneration, CLIPModel, CLIPTextModel, UNet2DConditionModel):

        def load(*args, name=cls.__name__, genuine=cls.from_pretrained, **kwargs):
            loaded[name] += 1
            return genuine(*args, **kwargs)

        monkeypatch.setattr(cls, "from_pretrained", load)
    monkeypatch.setenv("CTXEDIT_UPSCALE_SCALE", "4")
    enter = Session.__enter__

    def entered(self):
        gc.disable()
        # What earlier sessions held is not kept by a reference cycle.
        assert not any(one() for one in sessions)
        sessions.extend((weakref.ref(self), weakref.ref(self.parts)))
        return enter(self)

    monkeypatch.setattr(Session, "__enter__", entered)
    for name in ("a", "b"):
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    settings = ("--frames", 2, "--stride", 1, "--steps", 2, "--tune-steps", 1, "--threads", 1)
    try:
        assert ctxedit("batch", tmp_path, TARGET, *settings, "-o", tmp_path / "out").code == 0
        assert len(sessions) == 4 and not any(one() for one in sessions)
    finally:
        gc.enable()
    # Two of these are the upscaler's.
    assert loaded == {
        "Blip2ForConditionalGeneration": 1, "CLIPModel": 1, "CLIPTextModel": 2, "UNet2DConditionModel": 2,
    }  # fmt: skip
