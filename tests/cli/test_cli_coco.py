"""``ctxedit eval images --coco``: a slice in COCO's format through the built-in models."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ctxedit.synthetic import scenes

ANIMALS = ("tiger", "cat", "dog", "panda", "rabbit", "frog")


@pytest.fixture(scope="module")
def slice_of_coco(tmp_path_factory):
    """12 images of two sizes with two captions each, laid out as captions_val2014.json is."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "val2014").mkdir()
    listed, captions = [], []
    for i in range(12):
        number, (width, height) = 100 + 7 * i, ((96, 80), (80, 96))[i % 2]
        name = f"COCO_val2014_{number:012d}.jpg"
        scene = scenes.draw_scene(np.random.default_rng(i), pairs=0.0)
        picture = Image.fromarray(scenes.render_frame(scene, 0.5)[0]).resize((width, height))
        picture.save(folder / "val2014" / name)
        listed.append(
            {
                "license": 5, "file_name": name, "coco_url": f"http://images.cocodataset.org/val2014/{name}",
                "height": height, "width": width, "date_captured": "2013-11-14 16:28:13",
                "flickr_url": "http://farm4.staticflickr.com/1_z.jpg", "id": number,
            }
        )  # fmt: skip
        animal = ANIMALS[i % 6]
        for k, text in enumerate((f"a {animal} on the beach", f"a {animal}\n in the snow. ")):
            captions.append({"image_id": number, "id": 1000 - 2 * i - k, "caption": text})
    table = {
        "info": {"description": "COCO 2014 Dataset", "url": "http://cocodataset.org", "version": "1.0",
                 "year": 2014, "contributor": "COCO Consortium", "date_created": "2017/09/01"},
        "images": listed,
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1, "name": "A"}],
        "annotations": captions,
    }  # fmt: skip
    (folder / "captions.json").write_text(json.dumps(table))
    return folder


def ask(ctxedit, coco, out, *more, count=10):
    return ctxedit(
        "eval", "images", "--coco", coco / "captions.json", "--images", coco / "val2014", "--count", count,
        "--model", "builtin", "--steps", 2, "--metrics", "cmmd,clip_score", "--out", out, *more,
    )  # fmt: skip


def pixels(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def made(slice_of_coco, tmp_path_factory):
    from asking import call

    out = tmp_path_factory.mktemp("made") / "out"
    answer = ask(call, slice_of_coco, out, "--json")
    assert answer.code == 0, answer.err
    return answer, out


def test_one_image_a_caption_and_their_scores(made):
    answer, out = made
    table = answer.table
    assert (table["count"], table["size"], table["seed"]) == (10, 64, 0)
    cmmd, clip_score = table["scores"]
    assert (cmmd["generated"], cmmd["reference"], clip_score["reference"]) == (10, 10, 0)
    assert cmmd["value"] > 0 and clip_score["value"] > 0
    names = list(pixels(out))
    assert len(names) == 10 and all(len(name) == 16 for name in names)
    assert len(set(pixels(out).values())) == 10, "each has noise and words of its own"


def test_what_is_done_and_whole_is_kept_and_the_rest_is_made_the_same(ctxedit, slice_of_coco, made, tmp_path):
    _, out = made
    whole = pixels(out)
    first, second, third, *_ = sorted(whole)
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "coco.json").write_bytes((out / "coco.json").read_bytes())
    (tmp_path / first).unlink()
    (tmp_path / second).write_bytes(whole[second][:500])
    kept = (tmp_path / third).stat().st_mtime_ns
    answer = ask(ctxedit, slice_of_coco, tmp_path, count=11)
    assert answer.code == 0 and "8 of 11 images are there already" in answer.err, answer.err
    assert whole.items() <= pixels(tmp_path).items() and (tmp_path / third).stat().st_mtime_ns == kept


def test_other_settings_are_refused_unless_all_is_made_anew(ctxedit, slice_of_coco, made, no_weights):
    _, out = made
    answer = ask(ctxedit, slice_of_coco, out, "--guidance", 7)
    assert answer.code == 6 and "guidance" in answer.err and "-y" in answer.err


def test_other_sampling_is_refused_as_well(ctxedit, slice_of_coco, made, no_weights):
    _, out = made
    answer = ask(ctxedit, slice_of_coco, out, "--set", "edit.solver=dpm++2m")
    assert answer.code == 6 and "another solver: ddim, now dpm++2m" in answer.err, answer.err


def test_images_of_other_captions_are_not_taken_for_those_asked_for(
    ctxedit, slice_of_coco, made, tmp_path, no_weights
):
    _, out = made
    table = json.loads((slice_of_coco / "captions.json").read_text())
    for one in table["annotations"]:
        one["caption"] += " at night"
    (tmp_path / "other.json").write_text(json.dumps(table))
    answer = ask(ctxedit, slice_of_coco, out, "--coco", tmp_path / "other.json")
    assert answer.code == 6 and "another source of captions" in answer.err, answer.err


def test_a_note_without_the_newer_settings_is_taken(ctxedit, slice_of_coco, made, tmp_path):
    _, out = made
    shutil.copytree(out, tmp_path / "old")
    known = json.loads((out / "coco.json").read_text())
    earlier = ("model", "seed", "size", "steps", "guidance", "eta", "negative_prompt")
    note = tmp_path / "old" / "coco.json"
    note.write_text(json.dumps({key: known[key] for key in earlier}))
    answer = ask(ctxedit, slice_of_coco, tmp_path / "old")
    assert answer.code == 0 and "10 of 10 images are there already" in answer.err, answer.err
    note.write_text(json.dumps({**{key: known[key] for key in earlier}, "adapter": "0123"}))
    answer = ask(ctxedit, slice_of_coco, tmp_path / "old")
    assert answer.code == 6 and "another adapter: 0123, now None" in answer.err, answer.err


def test_generated_images_replace_neither_real_ones_nor_captions(
    ctxedit, slice_of_coco, tmp_path, no_weights
):
    coco = shutil.copytree(slice_of_coco, tmp_path / "coco")
    answer = ask(ctxedit, coco, coco / "val2014", "-y")
    assert answer.code == 6 and "is the folder of real images" in answer.err, answer.err
    captions = coco / "captions.json"
    captions.rename(coco / "coco.json")
    answer = ask(ctxedit, coco, coco, "-y", "--coco", coco / "coco.json")
    assert answer.code == 6 and "coco.json is the captions" in answer.err, answer.err
    assert "annotations" in json.loads((coco / "coco.json").read_text())


def test_images_are_scored_at_the_models_size_where_edits_are_upscaled(
    ctxedit, slice_of_coco, made, monkeypatch
):
    monkeypatch.delenv("CTXEDIT_UPSCALE_SCALE")
    _, out = made
    answer = ask(ctxedit, slice_of_coco, out, "--json")
    assert answer.code == 0 and answer.table["size"] == 64, answer.err


def test_a_caption_that_is_too_long_is_cut(stable_diffusion, backbone):
    from ctxedit.bench.coco import _fitting

    long = " ".join(["a tiger on the beach"] * 40)
    assert _fitting(backbone, "a tiger") == "a tiger"
    cut = _fitting(backbone, long)
    assert long.startswith(cut) and 20 < len(cut.split()) < 200
    backbone.words(cut)


@pytest.mark.parametrize(
    ("more", "count", "code", "said"),
    [
        ((), 13, 3, "--count 12"),
        ((), 5, 3, "at least 10"),
        (("--images", "{folder}"), 10, 3, "lacks 10 of 10 images"),
        (("--coco", "{folder}/val2014/COCO_val2014_000000000100.jpg"), 10, 3, "is not UTF-8"),
        (("--coco", "{folder}/none.json"), 10, 3, "does not exist"),
        (("--features", "inception", "--metrics", "fid"), 10, 4, "--features FILE"),
        (("--captions", "{folder}/captions.json"), 10, 2, "leave out GENERATED, REFERENCE and --captions"),
    ],
)
def test_bad_input_is_found_before_anything_is_made(
    ctxedit, slice_of_coco, tmp_path, monkeypatch, more, count, code, said
):
    import torch

    from ctxedit.metrics.images import fidelity

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(fidelity, "library", lambda module: None)
    more = [text.format(folder=slice_of_coco) for text in more]
    answer = ask(ctxedit, slice_of_coco, tmp_path / "out", *more, count=count)
    assert answer.code == code and said in answer.err, answer.err
    assert answer.err.count("error:") == 1 and not (tmp_path / "out").exists()


def test_a_caption_that_is_not_text_is_refused(ctxedit, slice_of_coco, tmp_path, no_weights):
    table = json.loads((slice_of_coco / "captions.json").read_text())
    table["annotations"][3]["caption"] = None
    (tmp_path / "null.json").write_text(json.dumps(table))
    answer = ask(ctxedit, slice_of_coco, tmp_path / "out", "--coco", tmp_path / "null.json", count=10)
    assert answer.code == 3 and "is not text: None" in answer.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["images"][0].update(file_name="/etc/hostname"), "not below the folder of images"),
        (lambda t: t["images"][0].update(file_name="a/../../b.jpg"), "not below the folder of images"),
        (lambda t: t["images"][0].update(file_name="..\\b.jpg"), "not below the folder of images"),
        (lambda t: t["images"][0].update(file_name=""), "not below the folder of images"),
        (lambda t: t["images"][0].update(file_name=None), "file name None"),
        (lambda t: t["images"][1].update(id=100), "lists image 100 twice"),
        (lambda t: t.pop("annotations"), "not in COCO's captions format"),
        (lambda t: t.update(annotations=[]), "has no captions"),
        (lambda t: t["annotations"][0].update(image_id=5), "captions of image 5, which it does not list"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(ctxedit, slice_of_coco, tmp_path, no_weights, change, said):
    table = json.loads((slice_of_coco / "captions.json").read_text())
    change(table)
    (tmp_path / "changed.json").write_text(json.dumps(table))
    answer = ask(ctxedit, slice_of_coco, tmp_path / "out", "--coco", tmp_path / "changed.json")
    assert answer.code == 3 and said in answer.err, answer.err
    assert answer.err.count("error:") == answer.err.count("hint:") == 1
    assert not (tmp_path / "out").exists()


def test_names_in_any_script_and_folders_and_repeated_entries_are_taken(slice_of_coco, tmp_path):
    from ctxedit.bench.coco import choose

    table = json.loads((slice_of_coco / "captions.json").read_text())
    table["images"][0]["file_name"] = "ünder/猫.jpg"
    table["images"].append(table["images"][1])
    (tmp_path / "captions.json").write_text(json.dumps(table))
    shutil.copytree(slice_of_coco / "val2014", tmp_path / "images")
    (tmp_path / "images" / "ünder").mkdir()
    old = tmp_path / "images" / "COCO_val2014_000000000100.jpg"
    old.rename(tmp_path / "images" / "ünder" / "猫.jpg")
    items = choose(tmp_path / "captions.json", tmp_path / "images", 12)
    assert len({item.id for item in items}) == 12 and any(item.image.name == "猫.jpg" for item in items)


def test_a_broken_real_image_is_found_before_anything_is_made(ctxedit, slice_of_coco, tmp_path):
    shutil.copytree(slice_of_coco, tmp_path / "coco")
    (tmp_path / "coco" / "val2014" / "COCO_val2014_000000000107.jpg").write_bytes(b"\xff\xd8 cut")
    answer = ctxedit(
        "eval", "images", "--coco", tmp_path / "coco" / "captions.json", "--images",
        tmp_path / "coco" / "val2014", "--count", 12, "--model", "builtin", "--out", tmp_path / "out",
    )  # fmt: skip
    assert answer.code == 3 and "COCO_val2014_000000000107.jpg cannot be read" in answer.err
    assert answer.err.count("error:") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("a",), ("a", "b", "--count", 3), ("a", "b", "--steps", 3), ("--coco", "x")]
)
def test_options_that_need_others(ctxedit, arguments):
    assert ctxedit("eval", "images", *arguments).code == 2
