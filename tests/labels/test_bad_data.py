"""Bad data through ``ctxedit train``: counted and skipped, or one line at the start."""

import io
import json
import tarfile

import pytest
from labelled_sets import coco_table, picture, recipe
from PIL import Image

PIXELS = """part = "pixel-denoiser"
[task]
channels = [32, 32]
steps = 4
[task.adapter]
enabled = false
[data]
source = "folder"
size = 32
on_error = "{on_error}"
[schedule]
steps = 4
batch = 2
lr = 1e-3
workers = 0
"""


@pytest.fixture()
def pixels(tmp_path):
    """Writes a recipe of a tiny denoiser of pixels."""

    def write(on_error="skip"):
        file = tmp_path / f"pixels-{on_error}.toml"
        file.write_text(PIXELS.format(on_error=on_error))
        return file

    return write


@pytest.fixture()
def pngs(tmp_path):
    """A folder of two classes with a PNG each, a broken one, and one of another size."""
    for name, size in (("cat/0", 32), ("dog/0", 32), ("dog/wide", 40)):
        file = tmp_path / "pngs" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture((size, 32), 1, "PNG"))
    (tmp_path / "pngs" / "cat" / "broken.png").write_bytes(picture((32, 32), 2, "PNG")[:60])
    return tmp_path / "pngs"


def refused(answer, *words):
    assert answer.code == 3, answer.err
    assert answer.err.count("error:") == 1 and "hint:" in answer.err and "Traceback" not in answer.err
    for one in words:
        assert one in answer.err, answer.err


def test_bad_pngs_are_counted_and_skipped(ctxedit, pixels, pngs, tmp_path):
    made = ctxedit("train", pixels(), "--data", pngs, "--out", "mine", "--json")
    assert made.code == 0, made.err
    assert made.table["bad"]["dog/wide.png"] == "40×32 pixels, not 32×32: images are not resized"
    assert "cat/broken.png" in made.table["bad"] and len(made.table["bad"]) == 2
    known = json.loads((tmp_path / "mine" / "pixel-denoiser" / "training.json").read_text())
    assert known["bad"] == 2


def test_bad_pngs_stop_a_training_that_says_so(ctxedit, pixels, pngs):
    refused(
        ctxedit("train", pixels("stop"), "--data", pngs, "--out", "mine"),
        "cannot be used: ",
        ".png",
    )
    (pngs / "empty").mkdir()
    refused(ctxedit("train", pixels("stop"), "--data", pngs), "empty (a class without images)")


def test_pixels_without_a_usable_image_are_refused_at_once(ctxedit, pixels, pngs):
    for good in (pngs / "cat" / "0.png", pngs / "dog" / "0.png"):
        good.unlink()
    refused(ctxedit("train", pixels(), "--data", pngs), "has no usable images (2 bad)")
    refused(ctxedit("train", pixels(), "--data", pngs / "none"), "no ")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[: len(data) // 2], "is damaged or truncated"),
        (lambda data: b"no archive", "is damaged or truncated"),
    ],
)
def test_an_archive_that_is_cut_is_refused_at_once(ctxedit, pixels, tmp_path, spoil, words):
    file, data = tmp_path / "cifar-10-binary.tar.gz", io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.size = 3073 * 4
        tar.addfile(member, io.BytesIO(bytes(range(256)) * 49))
    file.write_bytes(spoil(data.getvalue()))
    refused(ctxedit("train", pixels(), "--data", file), str(file), words)


def test_an_unpacked_archive_that_lacks_a_part_is_refused(ctxedit, pixels, tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(bytes(3073))
    refused(ctxedit("train", pixels(), "--data", folder), "has no data_batch_2.bin")


def test_shards_that_are_cut_are_counted_or_refused(ctxedit, shards, tmp_path, pixels):
    whole = (shards / "train-00.tar").read_bytes()
    (shards / "train-01.tar").write_bytes(whole[: len(whole) // 3])
    made = ctxedit("train", recipe(tmp_path, "class"), "--data", shards, "--out", "mine", "--json")
    assert made.code == 0, made.err
    assert made.table["bad"]["train-01.tar"].startswith("damaged shard")
    (shards / "train-00.tar").unlink()
    refused(
        ctxedit("train", recipe(tmp_path, "class"), "--data", shards), "no usable images", "damaged shard"
    )
    refused(ctxedit("train", pixels(), "--data", shards), "has no image with a class", "damaged shard")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "not a valid list of boxes"),
        (lambda text: json.dumps({"images": []}), "not in COCO's instances format"),
        (lambda text: text.replace('"category_id": 18', '"category_id": 99'), "that is not listed"),
        (lambda text: "[" * 100_000, "nested too deeply"),
        (lambda text: text.replace('"category_id": 18', '"category_id": Infinity'), "instances format"),
        (lambda text: text.replace('"category_id": 18', f'"category_id": {10**400}'), "401 digits"),
    ],
)
def test_broken_and_partial_coco_files_are_refused(ctxedit, coco, tmp_path, spoil, words):
    file = coco()
    file.write_text(spoil(file.read_text()))
    refused(ctxedit("train", recipe(tmp_path, "layout"), "--data", file), str(file), words)


def test_coco_images_of_another_size_and_boxes_too_many_are_counted_or_stop(ctxedit, coco, tmp_path):
    table = coco_table(4)
    table["annotations"] += [{**table["annotations"][0], "id": 10 + i} for i in range(4)]
    table["annotations"][1]["bbox"] = [64, 8, 10, 10]
    file = coco(table)
    Image.new("RGB", (32, 48)).save(tmp_path / "val2017" / "000000000102.jpg")
    made = ctxedit("train", recipe(tmp_path, "layout", steps=2), "--data", file, "--out", "mine", "--json")
    assert made.code == 0, made.err
    assert made.table["bad"] == {
        "000000000100.jpg": "5 boxes, at most 4 are used",
        "000000000101.jpg": "a box outside the image at 64, 8",
        "000000000102.jpg": "32×48 pixels, annotated at 64×48",
    }
    stop = recipe(tmp_path, "layout", data='on_error = "stop"')
    refused(ctxedit("train", stop, "--data", file), "2 samples cannot be used: 000000000100.jpg (5 boxes")


@pytest.mark.parametrize("name", ["/etc/hostname", "../val2017/000000000100.jpg", None])
def test_coco_images_outside_the_folder_are_refused(ctxedit, coco, tmp_path, name):
    table = coco_table(4)
    file = coco(table)
    table["images"][0]["file_name"] = name
    file.write_text(json.dumps(table))
    answer = ctxedit("train", recipe(tmp_path, "layout"), "--data", file, "--out", "mine")
    refused(answer, "not below the folder of images")
