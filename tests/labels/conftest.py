"""Tiny encoders trained for a step, small data sets in the exact formats, and the command line."""

import json
import tarfile
from io import BytesIO

import pytest
from asking import call
from labelled_sets import coco_table, picture, recipe


@pytest.fixture()
def ctxedit():
    return call


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders of a class and of a layout encoder with adapters, trained for a step on drawn scenes."""
    folder = tmp_path_factory.mktemp("encoders")
    for kind in ("class", "layout"):
        answer = call("train", recipe(folder, kind), "--out", folder, "-q")
        assert answer.code == 0, answer.err
    return folder


@pytest.fixture()
def imagenet(tmp_path):
    """ImageNet's layout: a folder for each synset, and the file that names them."""
    folder = tmp_path / "train"
    for number, name in enumerate(("n01440764", "n02123045", "n02510455")):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            (folder / name / f"{name}_{i}.JPEG").write_bytes(picture(seed=10 * number + i))
    (folder / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02123045 tabby, tabby cat\nn02510455 giant panda, panda\n"
    )
    return folder


@pytest.fixture()
def shards(tmp_path):
    """Webdataset shards with classes, as those of CIFAR-10."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "classes.txt").write_text("airplane\ntruck\n")
    with tarfile.open(folder / "train-00.tar", "w") as tar:
        for i, label in enumerate(("0", "1", "9")):
            for end, data in ((".jpg", picture((32, 32), i)), (".cls", label.encode())):
                member = tarfile.TarInfo(f"{i:05d}{end}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
    return folder


@pytest.fixture()
def coco(tmp_path):
    """COCO's folders; returns ``write(table)``, which writes the instances file and the images."""

    def write(table=None, images=True):
        table = coco_table() if table is None else table
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "val2017").mkdir(exist_ok=True)
        for one in table["images"] if images else ():
            data = picture((64, 48), one["id"])
            (tmp_path / "val2017" / one["file_name"]).write_bytes(data)
        file = tmp_path / "annotations" / "instances_val2017.json"
        file.write_text(json.dumps(table))
        return file

    return write
