"""Files of models, studies and comparisons that hold nonsense: each kind has its code, and none is 1."""

import json
import os
import shutil
import socket
import struct

import pytest

from ctxedit.config import AdapterConfig
from ctxedit.models.weights import BUILTIN_FOLDER

NONSENSE = {
    "empty": b"",
    "text": b"nonsense",
    "another type": b"[1, 2]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "closed deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "latin": b'{"a": "caf\xe9"}',
    "empty object": b"{}",
}


def told(answer, code):
    assert answer.code == code, answer.err
    lines = answer.err.strip().splitlines()
    assert "Traceback" not in answer.err and lines[-1].startswith("hint: ")
    (error,) = [line for line in lines if line.startswith("error: ")]
    return error


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    return shutil.copytree(BUILTIN_FOLDER, folder, ignore=shutil.ignore_patterns("judge", "controlnet"))


@pytest.fixture()
def model(copied, request):
    """A model's folder of whose files one may be broken; it is whole again afterwards."""
    kept = {}

    def breaking(name, content):
        file = copied / name
        kept[file] = file.read_bytes()
        file.unlink()
        if content is None:
            os.mkfifo(file)
        elif isinstance(content, str):
            file.symlink_to(content)
        else:
            file.write_bytes(content)
        return copied

    yield breaking
    for file, content in kept.items():
        file.unlink()
        file.write_bytes(content)


@pytest.mark.parametrize("kind", ["empty", "another type", "closed deep", "digits", "latin"])
@pytest.mark.parametrize(
    "name",
    [
        "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "vocabulary.json",
    ],
)  # fmt: skip
def test_a_model_file_of_nonsense_is_4(ctxedit, model, name, kind, tmp_path):
    folder = model(name, NONSENSE[kind])
    told(ctxedit("t2i", "a cat", "--model", folder, "-o", tmp_path / "x.png", "--dry-run"), 4)


def test_a_tokenizer_that_says_no_length_takes_the_text_encoders(ctxedit, model, tmp_path):
    folder = model("tokenizer/tokenizer_config.json", b"{}")
    answer = ctxedit("t2i", "a cat", "--model", folder, "--steps", 1, "-o", tmp_path / "x.png")
    assert answer.code == 0, answer.err
    assert ctxedit("t2i", "very " * 90, "--model", folder, "-o", tmp_path / "y.png").code == 3


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/tokenizer.json", "vocabulary.json"])
@pytest.mark.parametrize("content", [None, "/dev/zero"])
def test_a_model_file_that_is_none_is_4(ctxedit, model, name, content, tmp_path):
    folder = model(name, content)
    told(ctxedit("t2i", "a cat", "--model", folder, "-o", tmp_path / "x.png", "--dry-run"), 4)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_weights_that_are_a_device_or_a_fifo_are_4(ctxedit, model, name, tmp_path):
    (file,) = [f.name for f in (BUILTIN_FOLDER / name).glob("*.safetensors")]
    told(ctxedit("t2i", "a cat", "--model", model(f"{name}/{file}", None), "--dry-run"), 4)


def adapter_file(path, config, sizes, tensors=None):
    """A safetensors file of zeros with this metadata."""
    tensors = tensors or {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    metadata = {"config": config, "sizes": sizes}
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


_CONFIG = vars(AdapterConfig())
_SIZES = {"channels": 4, "context_width": 192, "image_width": 0}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (_CONFIG | {"blocks": 10**9}, _SIZES),
        (_CONFIG | {"width": 4 * 10**9}, _SIZES),
        (_CONFIG | {"blocks": 10**9, "width": 0}, _SIZES),
        (_CONFIG | {"blocks": -1}, _SIZES),
        (_CONFIG, _SIZES | {"channels": 10**12}),
        (_CONFIG, _SIZES | {"channels": "4"}),
        (_CONFIG, {}),
        ([], _SIZES),
    ],
)
def test_an_adapter_is_held_against_its_tensors_first(ctxedit, tmp_path, config, sizes):
    adapter_file(tmp_path / "bad.safetensors", json.dumps(config), json.dumps(sizes))
    for more in ((), ("--dry-run",)):
        answer = ctxedit(
            "t2i", "a cat", "--adapter", tmp_path / "bad.safetensors", "-o", tmp_path / "x.png", *more
        )
        assert "bad.safetensors" in told(answer, 4)


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ("[" * 5000, None),
        ("nonsense", None),
        (json.dumps(_CONFIG), {"x": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}),
        (json.dumps(_CONFIG), {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        (json.dumps(_CONFIG), {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
        (json.dumps(_CONFIG), {"x": 3}),
    ],
)
def test_an_adapter_of_nonsense_is_4(ctxedit, tmp_path, config, tensors):
    adapter_file(tmp_path / "bad.safetensors", config, json.dumps(_SIZES), tensors)
    for more in ((), ("--dry-run",)):
        answer = ctxedit(
            "t2i", "a cat", "--adapter", tmp_path / "bad.safetensors", "-o", tmp_path / "x.png", *more
        )
        assert "bad.safetensors" in told(answer, 4)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "study").mkdir()
    question = {"id": "q", "clip": "c", "target": "t", "a": "ddim", "b": "contextdiff"}
    (folder / "study" / "key.json").write_text(json.dumps({"study": "s", "questions": [question]}))
    return folder


_ANSWER = {"id": "q", "text": "a", "temporal": "b"}
_ANSWERS = {"study": "s", "rater": "r", "answers": [_ANSWER]}


@pytest.mark.parametrize(
    "content",
    [
        *NONSENSE.values(),
        *(
            json.dumps(_ANSWERS | change).encode()
            for change in (
                {"study": 3}, {"rater": []}, {"answers": 4}, {"answers": [3]}, {"answers": [[]]},
                {"answers": [_ANSWER | {"id": []}]}, {"answers": [_ANSWER | {"id": {}}]},
                {"answers": [_ANSWER | {"text": []}]}, {"answers": [_ANSWER, _ANSWER]},
            )
        ),
    ],
)  # fmt: skip
def test_answers_of_nonsense_are_3(ctxedit, study, tmp_path, content):
    (tmp_path / "answers.json").write_bytes(content)
    assert "answers.json" in told(ctxedit("bench", "answers", study, tmp_path / "answers.json"), 3)
    assert sorted(os.listdir(study / "study")) == ["key.json"]


def test_answers_that_the_table_would_replace_are_6(ctxedit, study, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(_ANSWERS))
    os.link(tmp_path / "mine.json", study / "study" / "preferences.json")
    try:
        assert "is the file of answers" in told(ctxedit("bench", "answers", study, tmp_path / "mine.json"), 6)
    finally:
        (study / "study" / "preferences.json").unlink()


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_study_or_comparison_of_nonsense_is_3(ctxedit, tmp_path, kind):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "key.json").write_bytes(NONSENSE[kind])
    (tmp_path / "answers.json").write_text(json.dumps(_ANSWERS))
    told(ctxedit("bench", "answers", tmp_path, tmp_path / "answers.json"), 3)
    (tmp_path / "table.json").write_bytes(NONSENSE[kind])
    told(ctxedit("bench", "study", tmp_path), 3)


@pytest.mark.parametrize("line", [b"[]", b"3", b'{"key": []}', b"[" * 50_000, b'{"key": "\xff"}'])
def test_results_of_nonsense_are_3(ctxedit, clip, tmp_path, line, no_weights):
    (tmp_path / "results.jsonl").write_bytes(line + b"\n\n")
    text = '[[clips]]\npath = "{}"\nprompt = "a tiger"\n[[clips.targets]]\nprompt = "a cat"\n'
    (tmp_path / "list.toml").write_text(text.format(clip))
    answer = ctxedit("bench", tmp_path / "list.toml", "--presets", "ddim", "--out", tmp_path)
    assert "results.jsonl" in told(answer, 3)


def test_sockets_are_no_files(ctxedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("it.toml")
        assert "a socket" in told(ctxedit("bench", "it.toml", "--presets", "ddim"), 2)


@pytest.mark.parametrize("seed", ["1000000000000000", "-9223372036854775808"])
def test_every_seed_of_64_bits_draws(ctxedit, clip, runs, seed, tmp_path):
    few = ("--frames", 2, "--stride", 1, "--tune-steps", 1, "--prompt", "a tiger")
    answer = ctxedit("tune", clip, *few, "--seed", seed, "--runs", tmp_path)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--seed", "9223372036854775808"], 2), (["--seed", "9" * 5000], 2), (["--device", "xpu"], 2),
        (["--device", "cpu:3"], 2), (["--device", "nonsense"], 2), (["--device", "cuda:9"], 5),
        (["--device", "meta"], 2), (["--model", "x" * 5000], 4), (["--model", "~nobody/model"], 4),
        (["--guidance", "1e999"], 2), (["--guidance", "nan"], 2),
        (["--set", "edit.guidance=1" + "0" * 400], 2), (["--set", "fusion.word_weights.cat=nan"], 2),
        (["--set", "clip.frames=1" + "0" * 40], 2), (["--steps", "1" + "0" * 40], 2),
    ],
)  # fmt: skip
def test_values_out_of_range(ctxedit, arguments, code, tmp_path, no_weights):
    answer = ctxedit("t2i", "a cat", "-o", tmp_path / "x.png", "--dry-run", "--offline", *arguments)
    assert answer.code == code, answer.err
    assert len(answer.err) < 3000
