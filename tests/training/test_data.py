"""Pictures with captions from a folder and from shards: order, layouts, and every kind of bad input."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctxedit.errors import ConfigError, InputError
from ctxedit.media.stills import read_image
from ctxedit.training.data import Data, DataConfig, Scenes


def picture(level: int, form="png", mode="RGB", size=(20, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, tuple([level] * len(mode)) if len(mode) > 1 else level).save(buffer, form)
    return buffer.getvalue()


def levels(dataset, indices):
    """The grey level of each sample."""
    return [round(float((dataset[i]["image"].mean() + 1) * 127.5)) for i in indices]


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Eight grey pictures, captioned in three ways; no bad input."""
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for i in range(4):
        (place / f"{i}.png").write_bytes(picture(20 * i))
        (place / f"{i}.txt").write_text(f"  grey number\n{i} ")
    rows = []
    for i in range(4, 6):
        (place / "more" / f"{i}.jpg").write_bytes(picture(20 * i, "jpeg"))
        rows.append(json.dumps({"file_name": f"{i}.jpg", "text": f"grey number {i}"}))
    (place / "more" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    rows = []
    for i in range(6, 8):
        (place / f"{i}.WEBP").write_bytes(picture(20 * i, "webp"))
        rows.append(json.dumps({"file_name": f"{i}.WEBP", "caption": f"grey number {i}"}))
    (place / "captions.jsonl").write_text("\n".join(rows) + "\n")
    return place


def shard(path: Path, samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path, source="folder", **more) -> Data:
    return Data(DataConfig(source, str(path), 16, **more), Scenes)


def test_every_picture_comes_once_an_epoch_with_its_caption(folder):
    dataset = opened(folder).dataset(3)
    assert dataset.bad == {}
    assert sorted(dataset[i]["caption"] for i in range(8)) == [f"grey number {i}" for i in range(8)]
    for i in range(16):
        number = int(dataset[i]["caption"].split()[-1])
        assert levels(dataset, [i]) == [pytest.approx(20 * number, abs=2)], "the caption is the picture's own"
    assert dataset[0]["image"].shape == (3, 16, 16)


def test_a_caption_may_contain_what_divides_lines_in_python_alone(folder):
    row = {"file_name": "6.WEBP", "caption": "grey\u2028number 6"}
    other = {"file_name": "7.WEBP", "caption": "grey number 7"}
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in (row, other))
    (folder / "captions.jsonl").write_text(lines, encoding="utf-8")
    dataset = opened(folder).dataset(3)
    assert dataset.bad == {}
    assert {dataset[i]["caption"].split()[-1] for i in range(8)} == set("01234567")


def test_the_order_is_of_the_seed_and_differs_between_epochs(folder):
    one, same, other = (opened(folder).dataset(seed) for seed in (3, 3, 4))
    first = levels(one, range(16))
    assert [same[i]["caption"] for i in (9, 2, 15)] == [one[i]["caption"] for i in (9, 2, 15)], "in any order"
    assert sorted(first[:8]) == sorted(first[8:]) and first[:8] != first[8:]
    assert levels(other, range(8)) != first[:8]


def test_a_clear_picture_lies_on_white_and_a_wide_one_is_cropped(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for name in ("clear", "wide"):
        (tmp_path / f"{name}.txt").write_text(name)
    dataset = opened(tmp_path).dataset(0)
    # Not black for clear, no black sides of the wide one; the filter reaches a little beyond the cut.
    assert all(float(dataset[i]["image"].mean()) > 0.95 for i in range(2))


def test_deep_pixels_keep_their_levels_and_those_without_a_range_are_bad(tmp_path):
    deep = np.full((20, 12), 100 * 257, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "floats.tif")
    for name in ("deep", "floats"):
        (tmp_path / f"{name}.txt").write_text(name)
    dataset = opened(tmp_path).dataset(0)
    assert levels(dataset, range(2)) == [100, 100], "another sample takes the place of a bad one"
    bad = [dataset[i]["bad"] for i in range(2)]
    assert "".join(bad).strip() == "floats.tif\tan image has floating-point pixels"
    with pytest.raises(InputError, match=r"floats\.tif: an image has floating-point pixels"):
        read_image(tmp_path / "floats.tif")


def spoil(folder: Path) -> dict[str, str]:
    """Every kind of bad input; name to a word of its reason."""
    (folder / "cut.png").write_bytes(picture(9, size=(400, 400))[:60])
    (folder / "cut.txt").write_text("cut short")
    (folder / "silent.png").write_bytes(picture(9))
    (folder / "blank.png").write_bytes(picture(9))
    (folder / "blank.txt").write_text(" \n")
    (folder / "lone.txt").write_text("no picture of this")
    with (folder / "captions.jsonl").open("a") as table:
        table.write('{"file_name": "gone.png", "text": "gone"}\nnot json\n')
        table.write('{"file_name": "../0.png", "text": "elsewhere"}\n{"file_name": 7, "text": "a number"}\n')
    return {
        "silent.png": "no caption", "blank.png": "empty", "lone.txt": "no image", "gone.png": "no image",
        "captions.jsonl:4": "not a JSON", "captions.jsonl:3": "",
        "captions.jsonl:5": "not below the folder", "captions.jsonl:6": "not a JSON",
    }  # fmt: skip


def test_bad_input_is_named_and_left_out(folder):
    expected = spoil(folder)
    dataset = opened(folder).dataset(0)
    assert set(dataset.bad) == set(expected) - {"captions.jsonl:3"}
    assert all(expected[name] in why for name, why in dataset.bad.items())
    told = [dataset[i]["bad"] for i in range(9)]
    assert [t.split("\t")[0] for t in told if t] == ["cut.png"], "the unreadable one, when it is met"
    captions = {dataset[i]["caption"] for i in range(9)}
    assert "cut short" not in captions and len(captions) == 8


def test_bad_input_stops_where_the_recipe_says_so(folder):
    opened(folder, on_error="stop")
    spoil(folder)
    with pytest.raises(InputError, match=r"7 samples cannot be used: .*\(.*…"):
        opened(folder, on_error="stop")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda p: p / "none", InputError, "no folder"),
        (lambda p: p, InputError, "no usable images"),
        (lambda p: "", ConfigError, r"needs data\.path"),
    ],
)
def test_no_data_is_refused(tmp_path, make, error, match):
    (tmp_path / "lone.txt").write_text("text")
    with pytest.raises(error, match=match):
        Data(DataConfig("folder", str(make(tmp_path))), Scenes)


def test_only_unreadable_pictures_are_no_data(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="no usable images"):
        opened(tmp_path)


def test_captions_are_not_asked_of_pictures_that_need_none(folder):
    for file in folder.rglob("*.txt"):
        file.unlink()
    config = DataConfig("folder", str(folder), 16)
    assert len(Data(config, Scenes, captions=False).captions) == 8
    assert len(Data(config, Scenes).captions) == 4


@pytest.fixture()
def shards(tmp_path: Path) -> Path:
    place = tmp_path / "shards"
    place.mkdir()
    shard(place / "0.tar", {"a/0.png": picture(0), "a/0.txt": b"grey 0", "1.jpg": picture(20, "jpeg"),
                            "1.json": b'{"text": "grey 1", "url": "x"}'})  # fmt: skip
    shard(place / "1.tar", {"2.png": picture(40), "2.txt": b"grey 2"})
    return place


def test_shards_are_read_by_number(shards):
    for path in (shards, f"{shards}/*.tar"):
        dataset = opened(path, "webdataset").dataset(1)
        assert dataset.bad == {}
        assert sorted(dataset[i]["caption"] for i in range(3)) == ["grey 0", "grey 1", "grey 2"]
        for i in range(6):
            assert levels(dataset, [i])[0] == pytest.approx(20 * int(dataset[i]["caption"][-1]), abs=2)
    assert len(opened(shards / "1.tar", "webdataset").captions) == 1


def test_bad_shards_and_samples_are_named(shards):
    whole = shard(shards / "cut.tar", {f"{i}.txt": b"x" * 900 for i in range(4)}).read_bytes()
    (shards / "cut.tar").write_bytes(whole[:2500])
    damaged = bytearray(whole)
    damaged[1536:1600] = b"\x07" * 64  # the second member's header
    (shards / "damaged.tar").write_bytes(damaged)
    (shards / "zip.tar").write_bytes(b"PK" + b"\1" * 3000)
    with tarfile.open(shards / "packed.tar", "w:gz") as tar:
        tar.add(shards / "0.tar")
    shard(shards / "odd.tar", {"3.png": picture(9), "4.txt": b"four", "5.png": picture(9), "5.txt": b" ",
                               "6.png": b"nothing", "6.txt": b"six", "7.png": picture(9),
                               "7.json": b"{"})  # fmt: skip
    dataset = opened(shards, "webdataset").dataset(0)
    broken = {name for name, why in dataset.bad.items() if "damaged shard" in why}
    assert broken == {"cut.tar", "damaged.tar", "zip.tar", "packed.tar"}
    assert {k: v for k, v in dataset.bad.items() if k not in broken} == {
        "odd.tar/3": "no caption", "odd.tar/4": "no image", "odd.tar/5": "empty caption",
        "odd.tar/7": "empty caption",
    }  # fmt: skip
    told = {dataset[i]["bad"].split("\t")[0] for i in range(4)} - {""}
    assert told == {"odd.tar/6"}
    with pytest.raises(InputError, match="cannot be used: "):
        opened(shards, "webdataset", on_error="stop")
    with pytest.raises(InputError, match="no shard"):
        opened(shards / "none.tar", "webdataset")


def test_scenes_are_the_same_interface():
    data = Data(DataConfig(size=32), Scenes)
    item = data.dataset(1)[5]
    assert item["image"].shape == (3, 32, 32) and data.captions is None
    assert torch.equal(item["image"], Scenes(1, 32)[5]["image"])
