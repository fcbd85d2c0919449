"""Recipes of tiny encoders, and images and annotations in the exact formats of public data sets."""

from io import BytesIO

import numpy as np
from PIL import Image

TINY = "map = {map}\ntokens = 4\nchannels = 8\nblocks = 1"
ADAPTER = "enabled = {on}\nwidth = 32\nblocks = 1\nheads = 2\nbound = 0.1"


def recipe(folder, kind, data="", adapter="true", more="train = []", steps=1, boxes=4):
    """A recipe of a tiny class or layout encoder; returns its path."""
    path = folder / f"{kind}-{adapter}.toml"
    sizes = TINY.format(map=4 if kind == "class" else 8)
    sizes += f"\nboxes = {boxes}" if kind == "layout" else ""
    path.write_text(
        f'part = "{kind}-encoder"\n[task]\n{more}\n[task.encoder]\n{sizes}\n'
        f"[task.adapter]\n{ADAPTER.format(on=adapter)}\n"
        f"[data]\n{data}\n[schedule]\nsteps = {steps}\nbatch = 2\nlr = 1e-2\nwarmup = 0\nworkers = 0\n"
    )
    return path


def picture(size=(48, 40), seed=0, form="JPEG"):
    """The bytes of an image of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def coco_table(images=4):
    """An instances file of so many images of 64×48 pixels, a box each; categories have gaps, as COCO's do."""
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": 100 + i, "file_name": f"{100 + i:012d}.jpg", "width": 64, "height": 48}
            for i in range(images)
        ],
        "annotations": [
            {
                "id": i, "image_id": 100 + i, "category_id": (1, 18)[i % 2], "bbox": [12, 8, 30.5, 30],
                "area": 915.0, "iscrowd": 0, "segmentation": [[12, 8, 42, 8, 42, 38]],
            }
            for i in range(images)
        ],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 18, "name": "dog", "supercategory": "animal"},
        ],
    }  # fmt: skip
