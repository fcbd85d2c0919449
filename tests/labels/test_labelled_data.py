"""Data with labels in exactly the formats of ImageNet, COCO and CIFAR-10's shards, and drawn without end."""

import json
from pathlib import Path

import pytest
import torch
from labelled_sets import coco_table, recipe

from ctxedit.errors import ConfigError, InputError
from ctxedit.synthetic.vocabulary import THINGS
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.labelled import LabelledData

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


def data(source, path, boxes=0, on_error="skip"):
    return LabelledData(DataConfig(source, str(path), 32, on_error=on_error), boxes)


def test_class_folders_are_classes_by_their_names(imagenet):
    (imagenet / "n02123045" / "broken.jpg").write_bytes(b"no image")
    found = data("classes", imagenet)
    assert found.labels == ["tench", "tabby", "giant panda"]
    samples = [found.dataset(0)[i] for i in range(7)]
    assert {int(s["labels"][0]) for s in samples} == {0, 1, 2}
    assert all(s["image"].shape == (3, 32, 32) and s["boxes"].tolist() == [[0, 0, 1, 1]] for s in samples)
    assert any("n02123045/broken.jpg" in s["bad"] for s in samples)
    (imagenet / "LOC_synset_mapping.txt").unlink()
    assert data("classes", imagenet).labels == ["n01440764", "n02123045", "n02510455"]


def test_classes_without_images_are_counted_and_no_classes_refused(imagenet, tmp_path):
    (imagenet / "n09999999").mkdir()
    assert data("classes", imagenet).listing.bad == {"n09999999": "a class without images"}
    with pytest.raises(InputError, match="1 sample cannot be used: n09999999"):
        data("classes", imagenet, on_error="stop")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no class folders"):
        data("classes", tmp_path / "empty")
    with pytest.raises(InputError, match="no folder"):
        data("classes", tmp_path / "nowhere")


def test_shards_have_classes_and_names(shards):
    found = data("webdataset", shards)
    assert found.labels == ["airplane", "truck"]
    assert [entry.labels for entry in found.listing.entries] == [(0,), (1,)]
    assert found.listing.bad == {"train-00.tar/00002": "no class below 2"}
    (shards / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"no classes\.txt"):
        data("webdataset", shards)


@pytest.mark.skipif(not CIFAR.is_dir(), reason="no CIFAR-10 here")
def test_cifar_10_has_ten_classes():
    found = data("webdataset", CIFAR / "test-00.tar")
    assert len(found.labels) == 10 and len(found.listing.entries) > 1000 and not found.listing.bad
    assert 0 <= int(found.dataset(0)[0]["labels"][0]) < 10


def test_coco_boxes_follow_the_crop(coco):
    table = coco_table(2)
    table["annotations"][1]["bbox"] = [0, 0, 64, 48]
    table["annotations"].append({**table["annotations"][0], "id": 7, "iscrowd": 1, "bbox": [0, 0, 9, 9]})
    found = data("coco", coco(table), boxes=3)
    assert found.labels == ["person", "dog"]
    samples = sorted((found.dataset(0)[i] for i in range(2)), key=lambda s: int(s["labels"][0]))
    # 64×48: the central square begins at 8 and has 48 pixels a side.
    assert torch.allclose(samples[0]["boxes"][0], torch.tensor([4 / 48, 8 / 48, 34.5 / 48, 38 / 48]))
    assert samples[0]["labels"].tolist() == [0, -1, -1], "a crowd is no object"
    assert samples[1]["boxes"][0].tolist() == [0, 0, 1, 1] and samples[1]["labels"][0] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [12, 8, 0, 30]}, "an empty box at 12, 8"),
        ({"bbox": [70, 8, 5, 5]}, "a box outside the image at 70, 8"),
        ({"image_id": 101}, "no boxes"),
    ],
)
def test_images_of_coco_that_cannot_be_used_are_counted(coco, change, reason):
    table = coco_table(2)
    table["annotations"][0].update(change)
    file = coco(table)
    assert data("coco", file, boxes=4).listing.bad == {"000000000100.jpg": reason}
    with pytest.raises(InputError, match=f"1 sample cannot be used: .*{reason}"):
        data("coco", file, boxes=4, on_error="stop")


def test_more_boxes_than_it_takes_missing_images_and_images_of_another_size(coco, tmp_path):
    table = coco_table(3)
    table["annotations"] += [{**table["annotations"][0], "id": 10 + i} for i in range(2)]
    table["images"][1]["width"] = 640
    file = coco(table)
    found = data("coco", file, boxes=2)
    assert found.listing.bad == {"000000000100.jpg": "3 boxes, at most 2 are used"}
    bad = "\n".join(found.dataset(0)[i]["bad"] for i in range(2))
    assert "000000000101.jpg\t64×48 pixels, annotated at 640×48" in bad
    (tmp_path / "val2017" / "000000000102.jpg").unlink()
    assert data("coco", file, boxes=4).listing.bad == {"000000000102.jpg": "no such file"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "not a valid list of boxes"),
        (lambda text: json.dumps({"images": []}), "not in COCO's instances format"),
        (lambda text: text.replace('"category_id": 18', '"category_id": 99'), "annotation 1 is of an image"),
        (lambda text: "[]", "not in COCO's instances format"),
    ],
)
def test_a_broken_instances_file_is_refused(coco, spoil, words):
    file = coco()
    file.write_text(spoil(file.read_text()))
    with pytest.raises(InputError, match=words):
        data("coco", file, boxes=4)


def test_coco_without_its_images_is_refused(coco):
    with pytest.raises(InputError, match="none of the images"):
        data("coco", coco(images=False), boxes=4)


def test_sources_without_the_labels_asked_for_are_refused(imagenet, shards):
    for source, path, boxes in (("classes", imagenet, 4), ("webdataset", shards, 4), ("folder", imagenet, 0)):
        with pytest.raises(ConfigError, match="has no labels"):
            data(source, path, boxes)
    with pytest.raises(ConfigError, match="has labels and no captions"):
        Data(DataConfig("classes", str(imagenet)), Scenes)


@pytest.mark.parametrize("compositions", [0.0, 1.0])
def test_drawn_boxes_hold_their_objects(compositions):
    samples = LabelledData(DataConfig(compositions=compositions), boxes=4).dataset(3)
    for i in range(6):
        one = samples[i]
        kept = one["labels"] >= 0
        assert kept.any() and one["mask"].shape == (64, 64)
        inside = torch.zeros(64, 64)
        for x0, y0, x1, y1 in (one["boxes"][kept] * 64).round().int().tolist():
            inside[y0:y1, x0:x1] = 1
        assert (one["mask"] * inside).sum() >= 0.98 * one["mask"].sum()
        assert not any(thing.name in one["caption"].split() for thing in THINGS)


def test_training_says_what_it_left_out(ctxedit, coco, tmp_path):
    table = coco_table(3)
    table["annotations"][0]["bbox"] = [1, 1, 0, 0]
    made = ctxedit("train", recipe(tmp_path, "layout"), "--data", coco(table), "--out", "mine", "--json")
    assert made.code == 0, made.err
    assert made.table["bad"] == {"000000000100.jpg": "an empty box at 1, 1"}
    known = json.loads((tmp_path / "mine" / "layout-encoder" / "training.json").read_text())
    assert known["data"].startswith("coco instances_val2017.json") and known["bad"] == 1
