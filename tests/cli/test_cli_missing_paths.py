"""A path that is not there is answered with the name beside it that may be meant, whichever option has it."""

import pytest

CLIP_TEXT = ("run", "CLIP", "a cat", "--prompt", "a tiger")


@pytest.mark.parametrize(
    ("arguments", "there", "code"),
    [
        (("run", "hoilday.mp4", "a cat"), "holiday.mp4", 3),
        ((*CLIP_TEXT, "--mask", "maks.png"), "mask.png", 3),
        ((*CLIP_TEXT, "--mask", "boxse.json"), "boxes.json", 3),
        ((*CLIP_TEXT, "--config", "mien.toml"), "mine.toml", 2),
        ((*CLIP_TEXT, "--preset", "mien.toml"), "mine.toml", 2),
        ((*CLIP_TEXT, "--model", "tigrs.safetensors"), "tigers.safetensors", 4),
        ((*CLIP_TEXT, "--model", "tigr-model"), "tiger-model/", 4),
        ((*CLIP_TEXT, "--model", "models/tigr"), "models/tiger/", 4),
        ((*CLIP_TEXT, "--lora", "pixle.safetensors:0.5"), "pixel.safetensors", 4),
        ((*CLIP_TEXT, "--lora", "some/styles/pixle.safetensors"), "some/styles/pixel.safetensors", 4),
        ((*CLIP_TEXT, "--embedding", "ctas.safetensors"), "cats.safetensors", 4),
        ((*CLIP_TEXT, "--clip-model", "./cilp"), "clip/", 4),
        ((*CLIP_TEXT, "--clip-model", "models/cilp"), "models/clip/", 4),
        (("run", "CLIP", "a cat", "--captioner", "./bilp"), "blip/", 4),
        (("run", "CLIP", "a cat", "--captioner", "lavis", "--lavis-python", "./pyhton"), "python", 4),
        ((*CLIP_TEXT, "--upscaler", "./upscalr"), "upscaler/", 4),
        ((*CLIP_TEXT, "--preset", "controlvideo", "--control", "depht.mp4"), "depth.mp4", 3),
        (("edit", "a cat", "--run", "runs/holiday-1"), "runs/holiday-12/", 3),
        (("show", "edti.mp4"), "edit.mp4", 3),
        (("compare", "a.mp4", "edti.mp4"), "edit.mp4", 3),
        (("eval", "--video", "edti.mp4", "--prompt", "a cat"), "edit.mp4", 3),
        (("eval", "--video", "CLIP", "--prompt", "a cat", "--source", "sorce.mp4"), "source.mp4", 3),
        (("eval", "images", "fkae", "real"), "fake/", 3),
        (("t2i", "a cat", "--adapter", "adaptr.safetensors"), "adapter.safetensors", 3),
        (("t2i", "--layout", "boxse.json"), "boxes.json", 3),
        (("t2i", "--class", "tiger", "--encoder", "encodr"), "encoder/", 4),
        (("batch", "clpis.csv", "a cat"), "clips.csv", 3),
        (("bench", "clpis.csv", "--presets", "ddim"), "clips.csv", 3),
        (("bench", "--presets", "ddim", "--external", "mine=vidoes"), "videos/", 3),
        (("train", "mien.toml"), "mine.toml", 2),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_a_missing_path_gets_a_guess(
    ctxedit, clip, tmp_path, monkeypatch, no_weights, arguments, there, code
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if there.endswith("/") else path.write_bytes(b"")
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "real").mkdir()
    answer = ctxedit(*(clip if word == "CLIP" else word for word in arguments))
    assert answer.code == code, answer.err
    assert "did you mean '" in answer.err and f"{there.rstrip('/')}'?" in answer.err, answer.err
    assert answer.err.count("error:") == 1 and answer.out == ""
