"""`ctxedit t2i --class` and `--layout`, and their figures, on encoders trained for a step."""

import json
import shutil

import numpy as np
import pytest
from labelled_sets import recipe
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ctxedit.models.condition_encoder import FILE
from ctxedit.models.weights import BUILTIN_FOLDER

TWO = {
    "size": [64, 64],
    "boxes": [{"label": "tiger", "box": [4, 20, 30, 56]}, {"label": "cat", "box": [36, 20, 60, 56]}],
}
FEW = ("--steps", 2, "--guidance", 3)


@pytest.fixture()
def layout(tmp_path):
    """``write(table)`` writes a layout; the changes are made to two boxes."""

    def write(**changes):
        file = tmp_path / "boxes.json"
        file.write_text(json.dumps({**TWO, **changes}))
        return file

    return write


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


def test_a_class_is_drawn_and_differs_from_another(ctxedit, trained, tmp_path):
    for name in ("tiger", "Pumpkin"):
        made = ctxedit("t2i", "--class", name, "--encoder", trained, *FEW)
        assert made.code == 0, made.err
    tiger = pixels("tiger.png")
    assert tiger.shape == (64, 64, 3) and not np.array_equal(tiger, pixels("pumpkin.png"))
    again = ctxedit("t2i", "--class", "tiger", "--encoder", trained, *FEW, "-o", "again.png")
    assert again.code == 0 and np.array_equal(tiger, pixels("again.png"))
    words = ctxedit("t2i", "on the beach", "--class", "tiger", "--encoder", trained, *FEW, "-o", "beach.png")
    assert words.code == 0 and not np.array_equal(tiger, pixels("beach.png"))
    shown = ctxedit("show", "tiger.png")
    assert "--class tiger" in shown.out


def test_an_image_by_the_models_own_encoder_is_known_until_that_is_trained_again(ctxedit, trained, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for part in BUILTIN_FOLDER.iterdir():
        if part.name != "class-encoder":
            (own / part.name).symlink_to(part)
    shutil.copytree(trained / "class-encoder", own / "class-encoder")
    call = ("t2i", "--class", "tiger", "--model", own, *FEW)
    assert (first := ctxedit(*call)).code == 0, first.err
    again = ctxedit(*call)
    assert again.code == 0 and "already" in again.err, again.err
    weights = own / "class-encoder" / FILE
    with safe_open(weights, "pt") as old:
        metadata = old.metadata()
    save_file({k: v * 2 for k, v in load_file(weights).items()}, weights, metadata)
    assert ctxedit(*call).code == 6


def test_a_layout_is_drawn_with_its_boxes(ctxedit, trained, layout):
    made = ctxedit("t2i", "--layout", layout(text="on the beach"), "--encoder", trained, *FEW)
    assert made.code == 0, made.err
    assert pixels("boxes.png").shape == (64, 64, 3)
    names = ", ".join(box["label"] for box in TWO["boxes"])
    assert f"seed 0: {names}, on the beach" in made.err
    told = ctxedit("show", "boxes.png").out.splitlines()
    assert f"shows    {names}" in told and "text     on the beach" in told
    moved = [{**TWO["boxes"][0], "box": [20, 2, 60, 30]}]
    other = ctxedit("t2i", "--layout", layout(boxes=moved), "--encoder", trained, *FEW, "-o", "b.png")
    assert other.code == 0 and not np.array_equal(pixels("boxes.png"), pixels("b.png"))
    assert "image “tiger”" in other.err and "“”" not in other.err
    again = ctxedit("t2i", "--layout", layout(), "--encoder", trained, *FEW, "-o", "c.png", "--json")
    assert again.table["labels"] == [box["label"] for box in TWO["boxes"]] and again.table["text"] == ""
    assert "text " not in ctxedit("show", "c.png").out, "there is none"
    both = ctxedit("compare", "boxes.png", "b.png", "c.png", "-o", "sheet.png", "--json").table["edits"]
    assert [edit["label"] for edit in both] == [f"{names}, on the beach", "tiger", names]


def test_a_grid_shows_all_classes_or_samples(ctxedit, trained, layout, monkeypatch):
    plan = ctxedit("t2i", "--grid", "--encoder", trained, "--steps", 3, "--dry-run", "--json").table["plan"]
    assert plan["image"] == "classes.png" and plan["evaluations"] == 40 * 2 * 3
    from ctxedit.editing import label_to_image

    monkeypatch.setattr(label_to_image, "SAMPLES", 2)
    made = ctxedit("t2i", "--layout", layout(), "--grid", "--encoder", trained, "--steps", 1)
    assert made.code == 0, made.err
    sheet = pixels("boxes-grid.png")
    red = (np.abs(sheet.astype(int) - (230, 60, 50)).sum(2) == 0).sum()
    assert sheet.shape[1] > 2 * 192 and red > 2 * 100, "each sample has its boxes over it"


def test_an_arm_without_the_adapter_and_one_that_trains_the_denoiser(ctxedit, tmp_path, layout):
    plain = ctxedit("train", recipe(tmp_path, "layout", adapter="false"), "--out", "plain", "-q")
    assert plain.code == 0, plain.err
    assert not (tmp_path / "plain/layout-encoder/adapter.safetensors").exists()
    path = recipe(tmp_path, "layout", more='train = ["attn2.to_q"]\nstart = "random"')
    made = ctxedit("train", path, "--out", "queries", "-q")
    assert made.code == 0, made.err
    moved = load_file(tmp_path / "queries/layout-encoder/denoiser.safetensors")
    assert moved and all(key.endswith("attn2.to_q.weight") for key in moved)
    for folder in ("plain", "queries"):
        drawn = ctxedit("t2i", "--layout", layout(), "--encoder", folder, "--steps", 1, "-o", f"{folder}.png")
        assert drawn.code == 0, drawn.err
    assert not np.array_equal(pixels("plain.png"), pixels("queries.png"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boxes": []}, "has no boxes"),
        ({"boxes": [{"label": "tiger", "box": [4, 20, 90, 56]}]}, "box 1 (tiger) is outside the image"),
        ({"boxes": [{"label": "tiger", "box": [4, 20, 4, 56]}]}, "box 1 (tiger) is empty"),
        ({"boxes": [{"label": "tiger", "box": [4, 20, 30]}]}, "is not four numbers"),
        ({"boxes": [{"label": "tigre", "box": [4, 20, 30, 56]}]}, "unknown label 'tigre'"),
        ({"boxes": [TWO["boxes"][0]] * 2}, "box 2 (tiger) is completely hidden by the others"),
        ({"boxes": [TWO["boxes"][0]] * 9}, "9 boxes, and this encoder takes 4"),
        ({"size": [64, 32]}, "images are square"),
        ({"size": "64"}, "is not a width and a height"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"size": [10**400, 64]}, "a number of 401 digits is too large"),
        ({"text": "\ud800"}, "half a character: \\ud800"),
    ],
)
def test_a_bad_layout_is_refused_before_anything_is_loaded(ctxedit, trained, layout, changes, words):
    answer = ctxedit("t2i", "--layout", layout(**changes), "--encoder", trained)
    assert answer.code == 3 and words in answer.err and answer.err.count("error:") == 1
    assert "hint:" in answer.err


def test_a_class_is_drawn_large_by_the_upscaler(ctxedit, trained, tmp_path):
    out = tmp_path / "cat.png"
    ask = (
        "t2i",
        "--class",
        "cat",
        "--encoder",
        trained,
        "--size",
        256,
        "--upscale",
        4,
        "--steps",
        1,
        "-o",
        out,
    )
    assert ctxedit(*ask, "--dry-run", "--json").table["plan"]["size"] == [256, 256]
    assert ctxedit(*ask, "--steps", 1).code == 0
    with Image.open(out) as image:
        assert image.size == (256, 256)


def test_a_layout_is_not_overwritten(ctxedit, trained, tmp_path, layout):
    given = layout().rename(tmp_path / "boxes.png")
    before = given.read_bytes()
    answer = ctxedit("t2i", "--layout", given, "--encoder", trained, *FEW, "-o", "boxes.png", "-y")
    assert answer.code == 6 and "is the layout" in answer.err
    assert given.read_bytes() == before


def test_wrong_options_and_classes_are_refused(ctxedit, trained, tmp_path, layout):
    unknown = ctxedit("t2i", "--class", "tigre", "--encoder", trained)
    assert unknown.code == 3 and "unknown class 'tigre'" in unknown.err and "tiger" in unknown.err
    assert ctxedit("t2i").code == 2
    assert ctxedit("t2i", "--class", "cat", "--layout", layout()).code == 2
    assert ctxedit("t2i", "a cat", "--encoder", trained).code == 2
    assert ctxedit("t2i", "--class", "cat", "--encoder", trained, "--no-adapter").code == 2
    large = ctxedit("t2i", "--class", "cat", "--encoder", trained, "--size", 1024, "--dry-run")
    assert large.code == 2 and "is not possible" in large.err
    assert ctxedit("t2i", "--class", "cat", "--encoder", tmp_path / "nowhere").code == 4
    other = ctxedit("t2i", "--class", "cat", "--encoder", trained / "layout-encoder")
    assert other.code == 4 and "layout encoder, not a class encoder" in other.err
    (tmp_path / "cut.json").write_text('{"size": [64')
    assert ctxedit("t2i", "--layout", "cut.json").code == 3


def test_another_model_is_refused(ctxedit, trained, stable_diffusion):
    own = ctxedit("t2i", "--class", "cat", "--model", stable_diffusion, "--steps", 1)
    assert own.code == 2 and "no class encoder for" in own.err
    named = ctxedit("t2i", "--class", "cat", "--model", stable_diffusion, "--encoder", trained, "--steps", 1)
    assert named.code == 2 and "trained on another model" in named.err


def test_figures_of_classes_and_layouts(ctxedit, trained, tmp_path):
    made = ctxedit("eval", "classes", "--encoder", trained, "--count", 10, "--steps", 1, "-o", "c", "--json")
    assert made.code == 0 and "knows drawn scenes only" not in made.err, made.err
    rows = {row["key"]: row for row in made.table["scores"]}
    assert set(rows) == {"class_right", "is", "fid", "precision", "recall"}
    assert rows["class_right"]["low"] < rows["class_right"]["high"] and rows["class_right"]["generated"] == 10
    assert rows["is"]["features"] == "the judge's 40 classes" and rows["is"]["value"] >= 1
    note = (tmp_path / "c/labels.json").read_bytes()
    for broken in (b"", b"null", note[:9], b"[" * 3000):
        (tmp_path / "c/labels.json").write_bytes(broken)
        answer = ctxedit("eval", "classes", "--encoder", trained, "--count", 10, "--steps", 1, "-o", "c")
        assert answer.code == 6 and "labels.json is damaged" in answer.err
    (tmp_path / "c/labels.json").write_bytes(note)
    other = ctxedit("eval", "classes", "--encoder", trained, "--count", 10, "--steps", 2, "-o", "c")
    assert other.code == 6 and "another steps" in other.err
    boxes = ctxedit("eval", "layouts", "--encoder", trained, "--count", 4, "--steps", 1, "-o", "l", "--json")
    assert boxes.code == 0, boxes.err
    found = {row["key"]: row for row in boxes.table["scores"]}
    assert found["boxes_real_images"]["value"] > 0.8, "the judge finds the drawn objects in their boxes"
    assert found["boxes_with_their_label"]["value"] <= found["labels_anywhere"]["value"]


def test_figures_on_real_classes_need_no_judge(ctxedit, imagenet, tmp_path):
    made = ctxedit("train", recipe(tmp_path, "class"), "--data", imagenet, "--out", "mine", "-q")
    assert made.code == 0, made.err
    options = ("--encoder", "mine", "--data", imagenet, "--count", 4, "--steps", 1, "--seed", -1)
    found = ctxedit("eval", "classes", *options, "-o", "real", "--json")
    assert found.code == 0, found.err
    assert {row["key"] for row in found.table["scores"]} == {"fid", "precision", "recall"}
    assert "judges know only the drawn world's objects" in found.err
    assert "knows drawn scenes only" in found.err
    more = ctxedit("eval", "classes", "--encoder", "mine", "--data", imagenet, "--count", 99)
    assert more.code == 3 and "has 6 usable images" in more.err
    drawn = ctxedit("eval", "classes", "--encoder", "mine", "--count", 4)
    assert drawn.code == 3 and "does not know the data's label" in drawn.err


def test_an_edit_stays_within_a_layouts_boxes(ctxedit, tmp_path, layout):
    """Whatever the labels: outside the boxes the pixels are the source's own."""
    source = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(source).save(tmp_path / "photo.png")
    asked = ("run", "photo.png", "a cat on the beach", "--prompt", "a dog on the beach", "--preset", "ddim",
             "--steps", 2, "-y", "--mask", layout(), "-o", "out.png")  # fmt: skip
    made = ctxedit(*asked)
    assert made.code == 0, made.err
    inside = np.zeros((64, 64), bool)
    for one in TWO["boxes"]:
        left, top, right, bottom = one["box"]
        inside[top:bottom, left:right] = True
    changed = (pixels("out.png") != source).any(-1)
    assert not changed[~inside].any() and changed[inside].mean() > 0.9
    refused = ctxedit(*asked[:-4], "--mask", layout(size=[64, 48]), "-o", "other.png", "--dry-run")
    assert refused.code == 3 and "the clip is 64×64: their aspect ratios differ" in refused.err
    refused = ctxedit(*asked[:-4], "--mask", layout(boxes=[]), "-o", "other.png", "--dry-run")
    assert refused.code == 3 and "has no boxes" in refused.err
