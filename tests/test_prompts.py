"""Prompt syntax of other tools is refused with what there is instead; prose passes."""

import pytest

from ctxedit.errors import ConfigError, InputError
from ctxedit.prompts import check_syntax, check_texts


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a (tiger:1.3) on a beach", "--set fusion.word_weights.tiger=1.3"),
        (
            "a (striped tiger: 0.8 )",
            "--set fusion.word_weights.striped=0.8 --set fusion.word_weights.tiger=0.8",
        ),
        ("ein (Bär:.5)", "--set 'fusion.word_weights.\"Bär\"=0.5'"),
        ("a ((tiger))", "fusion.word_weights"),
        ("a (tiger)1.4", "fusion.word_weights"),
        ("a (tiger:1.3 walking on the beach", "fusion.word_weights"),
        ("a (tiger:nan)", "fusion.word_weights"),
        (r"a \(tiger\)", "backslash"),
        ("a (tiger)++", "fusion.word_weights"),
        ("a [tiger]", "fusion.word_weights"),
        ("a [cat:dog:0.5]", "fusion.word_weights"),
        ("a {tiger}", "fusion.word_weights"),
        ("a {red|blue} car", "--target"),
        ("a tiger BREAK a beach", "lower case"),
        ("a tiger AND a panda", "lower case"),
        ("a tiger <lora:fluffy:0.8>", "LoRA"),
        ("a tiger, embedding:EasyNegative", "textual inversions"),
        ("a tiger --ar 16:9", "--help"),
        ("a tiger on __place__", "words"),
    ],
)
def test_other_tools_syntax(text, hint):
    with pytest.raises(ConfigError) as caught:
        check_syntax(text, "target")
    assert hint in caught.value.hint


def test_half_a_character_is_refused():
    with pytest.raises(InputError, match=r"the target is not valid Unicode: a \\xed\\xa0\\x80 cat"):
        check_texts(None, ["a \ud800 cat"])


@pytest.mark.parametrize("what", ["prompt", "negative prompt"])
def test_only_a_target_takes_weights_and_the_hint_says_so(what):
    with pytest.raises(ConfigError, match="weight") as caught:
        check_syntax("(ugly:1.3), blurry", what)
    assert "write “ugly” plainly" in caught.value.hint and "--set" not in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "a tiger (in the snow) walks",
        "a film still (4:3), grainy",
        "a clock (12:30)",
        "a clock (it is 12:30) on a wall",
        "a sign (left: red)",
        "a tiger (left) 2 cats (right)",
        "A TIGER AND A PANDA",
        "a brand and a sandy break",
        "a tiger: striped, loud; 50% off",
        "a well-known man's hat -- in red",
        "{source}, blurry",
        "an embedding of stones",
        "1 < 2 cats > 0",
    ],
)
def test_prose_passes(text):
    check_syntax(text, "target")


@pytest.mark.parametrize("option", ["--target", "--prompt", "--negative-prompt"])
def test_every_prompt_is_checked_before_work(option, tmp_path):
    from fractions import Fraction

    import numpy as np

    from ctxedit.api import settings
    from ctxedit.editing.plan import make
    from ctxedit.editing.request import Request
    from ctxedit.media.write import write_clip

    clip = write_clip(tmp_path / "clip.mp4", np.zeros((2, 64, 64, 3), np.uint8), Fraction(8))
    table = {"edit": {"negative_prompt": "(bad:2)" if option == "--negative-prompt" else ""}}
    config = settings("ddim", {"clip": {"frames": 2, "stride": 1}, **table})
    prompt = "a (dog:2)" if option == "--prompt" else "a dog"
    target = "a (cat:2)" if option == "--target" else "a cat"
    with pytest.raises(ConfigError, match="weight"):
        make(Request(clip, config, "ddim", prompt, (target,), runs=tmp_path / "runs"))
