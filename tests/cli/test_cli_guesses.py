"""Misspelt names are answered with the nearest one there is."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "guess"),
    [
        (("run", "CLIP", "a cat", "--preset", "contexdiff"), 2, "did you mean 'contextdiff'?"),
        (("presets", "show", "FateZer"), 2, "did you mean 'fatezero'?"),
        (("run", "CLIP", "a cat", "--model", "sdx", "--dry-run"), 4, "did you mean 'sdxl'?"),
        (("models", "pull", "blip-2"), 4, "did you mean 'blip2'?"),
        (("run", "CLIP", "a cat", "--set", "fusion.blend=slef"), 2, "did you mean 'self'?"),
        (
            ("run", "CLIP", "a cat", "--set", "fusion.treshold=0.3"),
            2,
            "did you mean 'fusion.mask_threshold'?",
        ),
        (("train", "autoencodr"), 2, "did you mean 'autoencoder'?"),
        (("rnu", "CLIP", "a cat"), 2, "Did you mean 'run'?"),
        (("runs", "shwo"), 2, "Did you mean 'show'?"),
        (
            ("eval", "--metrics", "clip_txt", "--video", "CLIP", "--prompt", "a cat"),
            2,
            "did you mean clip_text?",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_names(ctxedit, clip, arguments, code, guess):
    answer = ctxedit(*(clip if word == "CLIP" else word for word in arguments))
    assert answer.code == code and guess in answer.err, answer.err


def test_files(ctxedit, tmp_path, monkeypatch):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    for clip, guess in ((tmp_path / "holidya.mp4", tmp_path / "holiday.mp4"), ("holidya.mp4", "holiday.mp4")):
        monkeypatch.chdir(tmp_path)
        answer = ctxedit("run", clip, "a cat")
        assert answer.code == 3 and f"did you mean '{guess}'?" in answer.err
    assert "did you mean" not in ctxedit("run", "zebra.mp4", "a cat").err
    assert "did you mean" not in ctxedit("run", "nowhere/holiday.mp4", "a cat").err


def test_words_of_a_target(ctxedit, clip, tmp_path):
    few = ("--frames", 2, "--stride", 1, "--tune-steps", 0, "--steps", 1)
    answer = ctxedit(
        "run", clip, "a tigr on the xylophone", "--prompt", "a tiger on the beach", "--runs", tmp_path, *few
    )
    assert answer.code == 0
    assert "do not know 'tigr' (did you mean 'tiger'?), 'xylophone': see" in answer.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("run", "", "a cat"), "CLIP"),
        (("batch", "", "a cat"), "LIST"),
        (("run", "CLIP", "a cat", "--runs", ""), "--runs"),
        (("run", "CLIP", "a cat", "--lora", "a.safetensors", "--lora", ""), "--lora"),
        (("edit", "a cat", "--model", ""), "--model"),
        (("t2i", "a cat", "-o", ""), "--output"),
        (("train", "judge", "--out", ""), "--out"),
        (("eval", "images", "", "other"), "GENERATED"),
        (("run", "CLIP", "a cat", "--device", ""), "--device"),
        (("run", "CLIP", "a cat", "--set", ""), "--set"),
        (("t2i", "--class", ""), "--class"),
        (("eval", "guidance", "builtin", "--values", ""), "--values"),
        (("models", "check", "--part", ""), "--part"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_an_empty_name_is_not_the_current_folder(ctxedit, clip, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    answer = ctxedit(*(clip if word == "CLIP" else word for word in arguments))
    assert answer.code == 2 and answer.err.startswith(f"error: {named} is empty\nhint: "), answer.err
    assert not list(tmp_path.iterdir())
