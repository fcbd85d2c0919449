"""``ctxedit eval likelihood`` on a tiny denoiser of pixels, and the data it reads."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from ctxedit.errors import InputError
from ctxedit.training import recipe
from ctxedit.training.job import Training
from ctxedit.training.pixel_sources import open_pixels

CLASSES = ("airplane", "cat")


def pictures(count, side=32):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % len(CLASSES)


def archive(path, names=("test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6))), cut=0):
    """CIFAR-10's binary version, in small: a byte for the class, then the planes of red, green and blue."""
    images, labels = pictures(4)
    record = b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    )
    with tarfile.open(path, "w:gz") as tar:
        for name in (*names, "batches.meta.txt"):
            data = (
                "\n".join(CLASSES).encode() + b"\n\n" if name.endswith("txt") else record[: len(record) - cut]
            )
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of PNGs for each class."""
    root = tmp_path_factory.mktemp("png")
    for i, (image, label) in enumerate(zip(*pictures(6), strict=True)):
        (root / CLASSES[label]).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / CLASSES[label] / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def models(folder, tmp_path_factory):
    """Two arms after one step, plain and with a norm-keeping adapter."""
    found = {}
    for arm in ("plain", "norm-kept"):
        out = tmp_path_factory.mktemp(arm)
        one = recipe.resolve(f"cifar10-{arm}")
        one.task.update(channels=[32, 32], steps=8)
        one.task["adapter"] |= {"width": 32, "blocks": 1, "heads": 2}
        short = {"steps": 1, "batch": 2, "workers": 0}
        Training(one.changed(short, {"path": str(folder)}), out / ".state", out).run(lambda row: None)
        found[arm] = out
    return found


def test_all_sources_hold_the_same_pixels(folder, tmp_path):
    images, labels = pictures(4)
    packed = open_pixels(archive(tmp_path / "cifar-10-binary.tar.gz"), 32, "test")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = open_pixels(tmp_path / "cifar-10-batches-bin", 32, "test")
    with tarfile.open(tmp_path / "test-00.tar", "w") as tar:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            for name, data in ((f"{i:05d}.png", png.getvalue()), (f"{i:05d}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    shard = open_pixels(tmp_path / "test-00.tar", 32)
    for found in (packed, unpacked, shard):
        assert found.names == CLASSES and found.lossless and list(found.labels) == list(labels)
        assert all((found.read(i) == images[i]).all() for i in range(4))
    assert len(open_pixels(folder, 32)) == 6
    assert len(open_pixels(tmp_path / "cifar-10-binary.tar.gz", 32, "train")) == 20


def test_bad_data_are_refused(folder, tmp_path):
    def said(path, size=32):
        with pytest.raises(InputError) as caught:
            found = open_pixels(path, size)
            found.read(0)
        return caught.value.message

    whole = archive(tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in said(tmp_path / "cut.tar.gz")
    assert "data_batch_1.bin is truncated" in said(archive(tmp_path / "short.tar.gz", cut=5))
    assert "has no data_batch" in said(archive(tmp_path / "part.tar.gz", names=("test_batch.bin",)))
    assert "pickled" in said(archive(tmp_path / "python.tar.gz", names=("data_batch_1", "test_batch")))
    assert "32×32" in said(tmp_path / "whole.tar.gz", 64) and "32×32" in said(folder, 64)
    assert "no " in said(tmp_path / "none")


def ask(ctxedit, model, data, out, *more):
    return ctxedit("eval", "likelihood", model, data, "--count", 4, "--out", out, *more)


@pytest.mark.parametrize("arm", ["plain", "norm-kept"])
def test_the_bound_and_its_curve(ctxedit, models, folder, tmp_path, arm):
    answer = ask(ctxedit, models[arm], folder, tmp_path, "--terms", "all", "--json")
    assert answer.code == 0, answer.err
    found = answer.table
    assert found["bits"] == pytest.approx(found["prior"] + found["steps"] + found["decoder"])
    assert found["low"] < found["bits"] < found["high"] and found["error"] > 0
    assert [level for level, _, _ in found["curve"]] == list(range(2, 9)) and found["terms"] == 7
    assert sum(bits for _, bits, _ in found["curve"]) == pytest.approx(found["steps"])
    assert (tmp_path / "likelihood.png").is_file() and (tmp_path / "likelihood.csv").is_file()


def test_a_sample_of_the_terms_estimates_their_sum(ctxedit, models, folder, tmp_path):
    whole = ask(ctxedit, models["plain"], folder, tmp_path / "all", "--terms", "all", "--json").table
    part = ask(ctxedit, models["plain"], folder, tmp_path / "some", "--terms", 400, "--json").table
    assert part["terms"] == 7 and part["bits"] == pytest.approx(whole["bits"]), "no more than there are"
    few = ask(ctxedit, models["plain"], folder, tmp_path / "few", "--terms", 4, "--json").table
    assert few["terms"] == 4 and few["steps"] == pytest.approx(whole["steps"], rel=0.8)


def test_it_resumes_and_refuses_another_model(ctxedit, models, folder, tmp_path):
    first = ask(ctxedit, models["plain"], folder, tmp_path, "--json").table
    rows = (tmp_path / "terms.jsonl").read_text().splitlines()
    (tmp_path / "terms.jsonl").write_text("\n".join(rows[:2]) + "\n" + rows[2][:20])
    again = ask(ctxedit, models["plain"], folder, tmp_path, "--json").table
    assert again == first
    other = ask(ctxedit, models["norm-kept"], folder, tmp_path)
    assert other.code == 6 and "another model" in other.err
    (tmp_path / "terms.jsonl").write_text("\n".join(rows[:2]) + "\nnull\n")
    assert ask(ctxedit, models["plain"], folder, tmp_path, "--json").table == first
    note = (tmp_path / "likelihood.json").read_text()
    for broken in ("", "null", "[1]"):
        (tmp_path / "likelihood.json").write_text(broken)
        damaged = ask(ctxedit, models["plain"], folder, tmp_path)
        assert damaged.code == 6 and "likelihood.json is damaged" in damaged.err
    (tmp_path / "likelihood.json").write_text(note)
    assert (tmp_path / "terms.jsonl").read_text().splitlines() == rows


def test_dequantised_is_a_bound_too(ctxedit, models, folder, tmp_path):
    answer = ask(ctxedit, models["plain"], folder, tmp_path, "--decoder", "dequantised", "--json")
    assert answer.code == 0 and np.isfinite(answer.table["bits"])


def test_unknown_classes_and_bad_options_are_refused(ctxedit, models, folder, tmp_path):
    strange = tmp_path / "data"
    (strange / "zebra").mkdir(parents=True)
    Image.fromarray(pictures(1)[0][0]).save(strange / "zebra" / "0.png")
    Image.fromarray(pictures(1)[0][0]).save(strange / "zebra" / "1.png")
    answer = ctxedit("eval", "likelihood", models["plain"], strange, "--count", 2, "-o", tmp_path / "o")
    assert answer.code == 3 and "zebra" in answer.err
    assert ask(ctxedit, models["plain"], folder, tmp_path / "o", "--terms", "0").code == 2
    assert ask(ctxedit, models["plain"], folder, tmp_path / "o", "--decoder", "x").code == 2
    assert ask(ctxedit, tmp_path, folder, tmp_path / "o").code == 4
    assert (
        ctxedit("eval", "likelihood", models["plain"], folder, "--count", 7, "-o", tmp_path / "p").code == 3
    )


def test_images_that_cannot_be_used_are_named_before_the_work(ctxedit, models, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "cat" / "1.png").write_bytes(b"no image")
    Image.fromarray(pictures(1, 30)[0][0]).save(tmp_path / "data" / "cat" / "3.png")
    answer = ctxedit(
        "eval", "likelihood", models["plain"], tmp_path / "data", "--count", 6, "-o", tmp_path / "o"
    )
    assert answer.code == 3 and "2 of the 6 images cannot be used" in answer.err
    assert "cat/1.png: " in answer.err and "cat/3.png: 30×30 pixels, not 32×32" in answer.err
    assert not (tmp_path / "o").exists()


def test_figures_of_jpegs_are_marked(ctxedit, models, tmp_path):
    for i, image in enumerate(pictures(2)[0]):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "cat" / f"{i}.jpg")
    answer = ctxedit(
        "eval", "likelihood", models["plain"], tmp_path, "--count", 2, "-o", tmp_path / "o", "--json"
    )
    assert answer.code == 0, answer.err
    assert answer.table["lossless"] is False and "JPEG" in answer.err
    assert json.loads((tmp_path / "o" / "likelihood.json").read_text())["count"] == 2
