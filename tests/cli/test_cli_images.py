"""``ctxedit eval images``: the table, the JSON, and one line for each kind of bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ctxedit.errors import ConfigError
from ctxedit.metrics.images import fidelity
from ctxedit.metrics.images.captions import read_captions
from ctxedit.synthetic import scenes


@pytest.fixture(scope="module", autouse=True)
def torch_fidelity():
    try:
        fidelity.library("metric_fid")
    except ConfigError:
        pytest.skip("torch-fidelity is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """24 and 30 drawn pictures, captions of the former in every form, and a few bad folders."""
    folder = tmp_path_factory.mktemp("images")
    texts = {}
    for name, count, seed in (("made", 24, 0), ("real", 30, 500)):
        (folder / name).mkdir()
        for i in range(count):
            scene = scenes.draw_scene(np.random.default_rng(seed + i), pairs=0.0)
            Image.fromarray(scenes.render_frame(scene, 0.5)[0]).save(folder / name / f"{i}.png")
            if name == "made":
                texts[f"{i}.png"] = f"a {scene.actors[0].name}"
    (folder / "captions.json").write_text(json.dumps(texts))
    (folder / "captions.txt").write_text("\n".join(texts.values()) + "\n")
    lines = [json.dumps({"file_name": f"train/{k}", "text": v}) for k, v in texts.items()]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    (folder / "short.txt").write_text("a cat\n")
    (folder / "other.json").write_text(json.dumps({"x.png": "a cat"}))
    (folder / "broken.json").write_text("{")
    (folder / "two.json").write_text(json.dumps({**texts, "a/3.jpg": "a dragon"}))
    (folder / "nameless.jsonl").write_text('{"text": "a cat"}\n' * 24)
    (folder / "blank.json").write_text(json.dumps({**texts, "3.png": " "}))
    (folder / "blanks.json").write_text(json.dumps(["a cat"] * 23 + [""]))
    (folder / "letters.json").write_text(json.dumps("c" * 24))
    numbered = {"images": [{"id": 1, "file_name": 5}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    (folder / "numbered.json").write_text(json.dumps(numbered))
    for name in ("empty", "mixed", "corrupt", "few", "large", "zero", "one", "float", "locked"):
        (folder / name).mkdir()
    for i, side in enumerate((64, 48)):
        Image.new("RGB", (side, side)).save(folder / "mixed" / f"{i}.png")
    for i in range(3):
        Image.new("RGB", (64, 64)).save(folder / "few" / f"{i}.png")
    for i in range(24):
        Image.new("RGB", (96, 80), (9 * i, 0, 0)).save(folder / "large" / f"{i}.png")
    (folder / "zero" / "0.png").touch()
    Image.new("RGB", (64, 64)).save(folder / "one" / "0.png")
    Image.new("F", (64, 64)).save(folder / "float" / "0.tif")
    (folder / "locked" / "0.png").symlink_to("nowhere.png")
    data = (folder / "made" / "0.png").read_bytes()
    (folder / "corrupt" / "ok.png").write_bytes(data)
    (folder / "corrupt" / "torn.png").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """torch-fidelity's Inception with random weights, in its own layout."""
    network = fidelity.library("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(network, "load_state_dict", lambda self, state: None)
        made = network("inception-v3-compat", ["2048"], str(path))
    torch.save(made.state_dict(), path)
    return path


def test_every_figure_on_clip_features(ctxedit, folders):
    ask = ("eval", "images", folders / "made", folders / "real", "--captions", folders / "captions.json")
    answer = ctxedit(*ask, "--json")
    assert answer.code == 0, answer.err
    found = {one["key"]: one for one in answer.table["scores"]}
    assert list(found) == ["fid", "kid", "precision", "recall", "cmmd", "clip_score"]
    for one in found.values():
        assert one["features"] == "CLIP builtin" and one["low"] <= one["value"] <= one["high"]
    assert (found["fid"]["generated"], found["fid"]["reference"]) == (24, 30)
    assert found["clip_score"]["reference"] == 0 and 0.3 < found["clip_score"]["value"] < 1
    assert "features of made: 24 images" in answer.err and "distances: 6 metrics" in answer.err
    assert "more than 128 images" in answer.err and "drawn scenes only" in answer.err
    text = ctxedit(*ask, "-q")
    assert text.err == "" and text.out.splitlines()[0].split()[:2] == ["metric", "value"]
    assert "24 / 30" in text.out and "CLIP builtin" in text.out


def test_captions_in_each_form_mean_the_same(ctxedit, folders):
    values = set()
    for file in ("captions.json", "captions.jsonl", "captions.txt"):
        answer = ctxedit(
            "eval", "images", folders / "made", folders / "real", "--captions", folders / file,
            "--metrics", "clip_score", "--json", "-q",
        )  # fmt: skip
        values.add(answer.table["scores"][0]["value"])
    assert len(values) == 1


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x1c"])
def test_a_character_that_divides_lines_in_python_alone_divides_no_captions(tmp_path, separator):
    text = f"a cat{separator}on the beach"
    rows = [{"file_name": f"{i}.png", "text": text} for i in range(2)]
    written = "\n".join(json.dumps(row, ensure_ascii=separator == "\x1c") for row in rows)
    (tmp_path / "c.jsonl").write_text(written, encoding="utf-8")
    (tmp_path / "c.txt").write_bytes(f"{text}\r\n{text}\r\n".encode())
    for name in ("c.jsonl", "c.txt"):
        assert read_captions(tmp_path / name, [tmp_path / "0.png", tmp_path / "1.png"]) == [text, text]


def test_a_set_beside_itself_and_beside_another(ctxedit, folders):
    ask = ("--metrics", "fid,cmmd,precision", "--json", "-q")
    same = ctxedit("eval", "images", folders / "made", folders / "made", *ask).table["scores"]
    other = ctxedit("eval", "images", folders / "made", folders / "large", "--size", 64, *ask).table["scores"]
    assert [round(one["value"], 3) for one in same] == [0, 1, 0], "in the table's order: FID, precision, CMMD"
    assert other[0]["value"] > 1 and other[2]["value"] > 1


def test_each_way_to_store_a_picture_is_read_as_a_person_sees_it(ctxedit, tmp_path):
    """Grey, 16 bits, a palette, alpha, CMYK, EXIF's rotation, an animation; and the same as plain PNG."""
    grey = np.tile(np.linspace(0, 255, 96, dtype=np.uint8), (64, 1))
    picture = Image.fromarray(grey)
    clear, plain = Image.new("RGBA", (96, 64), (9, 9, 9, 0)), Image.new("RGB", (96, 64), (255, 255, 255))
    exif = Image.Exif()
    exif[0x112] = 6
    odd, same = tmp_path / "odd", tmp_path / "same"
    for folder in (odd, same):
        folder.mkdir()
    stored = [
        (picture, "png", picture, {}),
        (Image.fromarray(grey.astype(np.uint16) * 257), "png", picture, {}),
        (picture.convert("P"), "png", picture, {}),
        (clear, "png", plain, {}),
        (picture.convert("RGB").convert("CMYK"), "tif", picture, {}),
        (picture.rotate(90, expand=True), "png", picture, {"exif": exif}),
        (
            picture,
            "webp",
            picture,
            {"lossless": True, "save_all": True, "append_images": [plain.convert("L")]},
        ),
    ]
    for i, (image, suffix, shown, options) in enumerate(stored):
        image.save(odd / f"{i}.{suffix}", **options)
        shown.convert("RGB").save(same / f"{i}.png")
    answer = ctxedit("eval", "images", odd, same, "--metrics", "fid", "--json", "-q")
    assert answer.code == 0, answer.err
    assert answer.table["scores"][0]["value"] == pytest.approx(0, abs=1e-3)


def test_an_image_that_may_not_be_read_is_not_called_damaged(ctxedit, folders, monkeypatch):
    opened = Image.open

    def refuse(path, *more, **options):
        if str(path).endswith("3.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more, **options)

    monkeypatch.setattr(Image, "open", refuse)
    answer = ctxedit("eval", "images", folders / "made", folders / "real")
    assert answer.code == 3 and "3.png cannot be read: permission denied" in answer.err.lower(), answer.err
    assert "check the path and its permissions" in answer.err and answer.out == ""


def test_features_that_are_not_numbers_are_an_error(ctxedit, folders, monkeypatch):
    def broken(scorer, images, unit=True):
        return torch.full((len(images), 8), float("nan"))

    monkeypatch.setattr("ctxedit.models.clip.ClipScorer.embed_images", broken)
    answer = ctxedit("eval", "images", folders / "made", folders / "real")
    assert answer.code == 7 and "NaN or infinity in the features of" in answer.err and answer.out == ""


def test_very_large_images_come_one_by_one(folders, monkeypatch):
    from ctxedit.metrics.images import sets

    opened = sets.open_set(folders / "large")
    together = [batch for batch in opened.batches()]
    monkeypatch.setattr(sets, "_MOST_PIXELS", 96 * 80 + 1)
    single = list(opened.batches())
    assert (len(together), len(single)) == (1, 24) and np.array_equal(np.concatenate(single), together[0])


def test_of_a_long_strip_the_middle_alone_is_scaled(monkeypatch):
    from ctxedit.metrics.images import sets

    grey = np.tile(np.linspace(0, 255, 4001).astype(np.uint8)[None, :, None], (4, 1, 3))
    resize, sizes = Image.Image.resize, []

    def spy(image, size, *more):
        sizes.append(size)
        return resize(image, size, *more)

    monkeypatch.setattr(Image.Image, "resize", spy)
    whole = sets.to_square(grey, 16)
    monkeypatch.setattr(sets, "_MOST_PIXELS", 16 * 16 * 20)
    for strip in (grey, grey.swapaxes(0, 1)):
        assert np.abs(sets.to_square(strip, 16).astype(int) - whole.astype(int)).max() <= 1
    assert max(sizes[1:]) == (128, 16) and sizes[2] == (16, 128)


def test_inception_by_a_file(ctxedit, folders, inception, tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes((folders / "made" / f"{i}.png").read_bytes())
    answer = ctxedit(
        "eval", "images", tmp_path, folders / "few", "--features", inception, "--metrics", "fid,is", "--json"
    )
    assert answer.code == 0, answer.err
    fid, inception_score = answer.table["scores"]
    assert fid["features"] == inception_score["features"] == "inception-v3-compat (weights.pth)"
    assert inception_score["value"] >= 1 and fid["low"] is None and "more than 2048" in answer.err
    assert "IS of 10 splits needs 5000 images" in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("empty", "real"), 3, "holds no images"),
        (("mixed", "real"), 3, "differ in size: 0.png is 64×64, 1.png is 48×48"),
        (("made", "large"), 3, "96×80"),
        (("corrupt", "real"), 3, "torn.png cannot be read"),
        (("zero", "real"), 3, "0.png cannot be read as an image"),
        (("float", "real"), 3, "floating-point pixels"),
        (("locked", "real"), 3, "0.png is a link to nowhere.png, which does not exist"),
        (("few", "real"), 3, "needs at least"),
        (("one", "one", "--metrics", "fid"), 3, "needs at least 2 images"),
        (("made", "nowhere"), 3, "does not exist"),
        (("made", "captions.txt"), 3, "not a folder"),
        (("made", "real", "--captions", "short.txt"), 3, "1 caption, and there are 24 images"),
        (("made", "real", "--captions", "other.json"), 3, "no caption for 24 of 24 images, including 0.png"),
        (("made", "real", "--captions", "broken.json"), 3, "not a file of captions"),
        (("made", "real", "--captions", "two.json"), 3, "has two captions for 3"),
        (("made", "real", "--captions", "nameless.jsonl"), 3, "not a file of captions"),
        (("made", "real", "--captions", "blank.json"), 3, "the caption of 3.png is empty"),
        (("made", "real", "--captions", "blanks.json"), 3, "the caption of 23.png is empty"),
        (("made", "real", "--captions", "letters.json"), 3, "not a file of captions"),
        (("made", "real", "--captions", "numbered.json"), 3, "not a file of captions"),
        (("made", "real", "--size", "200000"), 5, "one image takes about"),
        (("made", "real", "--metrics", "fidd"), 2, "unknown metric 'fidd'"),
        (("made", "real", "--metrics", "is"), 2, "--features inception"),
        (("made", "real", "--metrics", "clip_score"), 2, "--captions"),
        (("made", "real", "--features", "inception"), 4, "--features FILE"),
        (("made", "real", "--features", "captions.txt"), 4, "cannot be read as weights"),
        (("made", "real", "--features", "gone.pth"), 4, "gone.pth"),
        (("made", "real", "--features", "some/clip", "--offline"), 4, "some/clip"),
    ],
)
def test_bad_input_is_one_line(ctxedit, folders, monkeypatch, tmp_path, arguments, code, said):
    monkeypatch.chdir(folders)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        "ctxedit.models.clip.ClipScorer.embed_images", lambda *a, **k: pytest.fail("computed")
    )
    answer = ctxedit("eval", "images", *arguments)
    assert answer.code == code and said in answer.err, answer.err
    assert answer.err.count("error:") == 1 and answer.err.count("hint:") == 1 and answer.out == ""


def test_weights_of_another_network_are_refused(ctxedit, folders, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    answer = ctxedit(
        "eval", "images", folders / "made", folders / "real", "--features", tmp_path / "other.pth"
    )
    assert answer.code == 4 and "does not hold the weights" in answer.err


def test_without_torch_fidelity(ctxedit, folders, monkeypatch):
    def absent(module):
        raise ConfigError("FID needs torch-fidelity, which is not installed", "pip install 'ctxedit[images]'")

    monkeypatch.setattr(fidelity, "library", absent)
    answer = ctxedit("eval", "images", folders / "made", folders / "real")
    assert answer.code == 2 and "ctxedit[images]" in answer.err
    answer = ctxedit("eval", "images", folders / "made", folders / "real", "--metrics", "cmmd")
    assert answer.code == 0 and "CMMD" in answer.out
