"""What newcomers get wrong: each mistake is answered with what to type instead, before any work."""

import pytest

from ctxedit.cli.app import build


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "a.mp4", "a", "dog", "on", "ice"), 2, 'ctxedit run CLIP "a dog on ice"'),
        (("run", "a dog", "a.mp4"), 3, "the clip comes first, then the text: a.mp4 'a dog'"),
        (("run", "a.mp4", ""), 3, "what the edited clip should show"),
        (("run", "a.mp4", "a dog", "--guidance", "high"), 2, "'--guidance': must be a number\n"),
        (("run", "a.mp4", "a dog", "--seed", "x"), 2, "'--seed': must be a whole number\n"),
        (("run", "https://example.com/a.mp4", "a dog"), 3, "https://example.com/a.mp4 is a web address"),
        (("edit", "a.mp4"), 2, 'ctxedit edit a.mp4 "a panda walking on the beach"'),
        (("edit", "a dog", "a.mp4"), 3, "the clip comes first"),
        (("t2i", ""), 3, "what the image should show"),
        (("eval", "a.mp4"), 2, "ctxedit eval --prompt TEXT --video a.mp4"),
        (("eval", "made"), 2, "ctxedit eval --run made"),
        (("run", "a dog"), 2, "the clip comes first: ctxedit run CLIP 'a dog'"),
        (
            ("tune", "a.mp4", "a dog"),
            2,
            "ctxedit tune a.mp4 --prompt 'a dog'; to edit it: ctxedit run a.mp4 'a dog'",
        ),
        (("tune", "a.mp4", "--seed", 3, "a", "dog"), 2, "ctxedit tune a.mp4 --seed 3 --prompt 'a dog'"),
        (("tune", "a.mp4", "a dog", "--prompt", "a cat"), 2, "hint: to edit it: ctxedit run a.mp4 'a dog'"),
        (("tune", "a dog", "a.mp4"), 2, "the clip comes first: ctxedit tune a.mp4"),
        (("tune", "a.mp4", "a dog", "--prompt=a cat"), 2, "hint: to edit it: ctxedit run a.mp4 'a dog'"),
        (("tune", "a.mp4", "a.mp4"), 2, "`ctxedit tune` takes CLIP"),
        (("tune", "a.mp4", "--prompt"), 2, "ctxedit tune CLIP: see `ctxedit tune --help`"),
        (("caption", "a.mp4", "a dog"), 2, "to edit it: ctxedit run a.mp4 'a dog'"),
        (("caption",), 2, "ctxedit caption CLIP: see"),
        (("show", "a.mp4", "a dog"), 2, "`ctxedit show` takes FILE"),
        (("eval", "--video", "a.mp4", "a dog"), 2, "eval edits --video a.mp4 --prompt 'a dog'"),
        (("runs", "ls", "made"), 2, "`ctxedit runs ls` takes no arguments"),
        (("models", "pull"), 2, "ctxedit models pull NAME: see"),
        (("t2i", "a", "dog", "--seed", 1), 2, "put the text in quotes: ctxedit t2i 'a dog' --seed 1"),
        (("compare", "a.mp4", "a dog"), 2, "--presets contextdiff,fatezero a.mp4 'a dog'"),
        (("batch", "a.mp4", "a dog"), 2, "a.mp4 is a clip, not a list"),
        (("bench", "--presets", "ddim", "--limit", 0), 2, "'--limit': must be at least 1\n"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_mistake_gets_the_right_command(
    ctxedit, clip, tmp_path, monkeypatch, no_weights, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "run.toml").write_text("")
    answer = ctxedit(*arguments)
    assert answer.code == code and words in answer.err, answer.err
    assert answer.err.count("error:") == answer.err.count("hint:") == 1 and answer.out == ""


def test_names_that_share_their_suffix_alone_are_no_guess(ctxedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiger-beach.mp4").write_bytes(b"")
    assert "did you mean" not in ctxedit("caption", "nothere.mp4").err
    assert "did you mean 'tiger-beach.mp4'?" in ctxedit("caption", "tiger-baech.mov").err


def test_a_guess_has_the_suffix_that_was_asked_for_and_may_hold_an_apostrophe(ctxedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiger.mp4", "tiger.png", "tiger.toml", "bob's dog.mp4"):
        (tmp_path / name).write_bytes(b"")
    for suffix in ("mp4", "png"):
        assert f"did you mean 'tiger.{suffix}'?" in ctxedit("caption", f"tigre.{suffix}").err
    assert 'did you mean "bob\'s dog.mp4"?' in ctxedit("caption", "bobs dog.mp4").err


def test_a_target_of_any_length_is_no_path(ctxedit, tmp_path):
    """A name of more than 255 bytes cannot be looked up."""
    answer = ctxedit("edit", "a panda walking. " * 30, "--runs", tmp_path)
    assert answer.code == 3 and "no run in" in answer.err, answer.err


def test_counts_agree_with_their_nouns(ctxedit, clip, tmp_path, monkeypatch, no_weights):
    monkeypatch.chdir(tmp_path)
    one = ("run", clip, "a cat", "--prompt", "a tiger", "--frames", 1, "--dry-run")
    text = ctxedit(*one).out
    assert ": 1 frame, " in text and "× 1 frame" in text and "1 frames" not in text
    (tmp_path / "list.csv").write_text(
        f"path,prompt,target\n{clip},a tiger on the beach,a cat on the beach\n"
    )
    answer = ctxedit("bench", "list.csv", "--presets", "ddim", "--set", "clip.frames=2", "--dry-run")
    assert "1 clip with 1 target\n" in answer.out, answer.err


def test_help_on_a_terminal_of_one_column(ctxedit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1")
    build.cache_clear()
    try:
        answer = ctxedit("presets", "ls", "--help")
    finally:
        build.cache_clear()
    assert answer.code == 0 and "--json" in answer.out, answer.err


def test_models_ls_refuses_an_unknown_model(ctxedit):
    answer = ctxedit("models", "ls", "--model", "nope", "--offline")
    assert answer.code == 4 and "no model named 'nope'" in answer.err, answer.err
