"""Evaluation of class to image and layout to image: generated against real images of the same labels.

As in the paper's tables 3 and 4: FID, IS, precision and recall for classes; FID and the share of boxes in
which a judge finds the label for layouts. The features are CLIP's or Inception's, and are named with each
figure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctxedit.bench.coco import check_note, is_whole, sampling_facts
from ctxedit.config import Config
from ctxedit.editing.label_to_image import open_model, picture
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.stills import read_image
from ctxedit.media.temporary import atomic
from ctxedit.media.write import write_image
from ctxedit.metrics.images import fidelity
from ctxedit.metrics.images.scores import Score
from ctxedit.metrics.intervals import STUDENT, wilson
from ctxedit.models.condition_encoder import Kind
from ctxedit.models.label_condition import Box, LabelEncoder, Labels
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.synthetic import composition_judge, composition_verdict, judge
from ctxedit.synthetic.composition_verdict import Detections
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.training.data import DataConfig
from ctxedit.training.labelled import LabelledData

_NOTE = "labels.json"
#: Share of compositions, with up to four objects, among drawn layouts.
_COMPOSITIONS = 0.4
_SPLITS = 10


@dataclass(frozen=True)
class LabelSample:
    """One image to generate and the real one with the same labels: RGB uint8 (H, W, 3)."""

    labels: Labels
    real: NDArray[np.uint8]


def wanted(
    kind: Kind, encoder: LabelEncoder, data: Path | None, count: int, seed: int, side: int
) -> list[LabelSample]:
    """``count`` labels with their real images.

    Args:
        kind: ``class`` or ``layout``.
        encoder: the data's labels must be among its labels.
        data: a folder of class folders, shards with classes, or COCO's instances; None draws held-out scenes.
        count, seed: of the choice.
        side: of the real images, in pixels.

    Raises:
        InputError: no such data, labels that the encoder does not know, or too few images.
    """
    most = encoder.encoder.config.boxes if kind == "layout" else 0
    if data is None:
        config, test = DataConfig(size=side, compositions=_COMPOSITIONS if most else 0.0), True
    else:
        shards = data.suffix == ".tar" or (data.is_dir() and any(data.glob("*.tar")))
        source: Any = "coco" if most else "webdataset" if shards else "classes"
        config, test = DataConfig(source, str(data), side), False
    found = LabelledData(config, most)
    if unknown := sorted(set(found.labels) - set(encoder.encoder.labels)):
        raise InputError(
            f"{encoder.folder} does not know the data's label {unknown[0]!r}",
            "give the data that it was trained on, or another --encoder",
        )
    if found.listing is not None and len(found.listing.entries) < count:
        raise InputError(f"{data} has {len(found.listing.entries)} usable images", "choose a smaller --count")
    samples = found.held_out(seed) if test else found.dataset(seed)
    return [_of(samples[i], found.labels, encoder) for i in range(count)]


def _of(sample: dict[str, Any], names: Sequence[str], encoder: LabelEncoder) -> LabelSample:
    real = ((sample["image"].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    kept = [i for i, label in enumerate(sample["labels"].tolist()) if label >= 0]
    numbers = tuple(encoder.encoder.number(names[int(sample["labels"][i])]) for i in kept)
    boxes: list[Box] = [(a, b, c, d) for a, b, c, d in sample["boxes"][kept].tolist()]
    return LabelSample(Labels(numbers, tuple(boxes)), real)


def make(
    samples: Sequence[LabelSample],
    encoder: LabelEncoder,
    out: Path,
    config: Config,
    offline: bool,
    reporter: Reporter,
    data: Path | None = None,
) -> tuple[list[Path], list[Path]]:
    """Write the generated and the real images; existing ones are kept.

    ``data`` is where the samples are from, as for :func:`wanted`.

    Returns:
        The files in ``out/generated`` and ``out/real``.

    Raises:
        OutputError: ``out`` holds images of other settings, or cannot be written.
    """
    check(out, encoder, config, data)
    names = [f"{i:06d}.png" for i in range(len(samples))]
    mine, theirs = [out / "generated" / n for n in names], [out / "real" / n for n in names]
    due = [i for i, file in enumerate(mine) if not is_whole(file)]
    if due:
        backbone = open_model(config, offline, reporter)
        encoder.fit(backbone)
        for folder in (mine[0].parent, theirs[0].parent):
            folder.mkdir(parents=True, exist_ok=True)
        with atomic(out / _NOTE, True) as temporary:
            temporary.write_text(json.dumps(_facts(encoder, config, data), indent=2) + "\n", encoding="utf-8")
        with reporter.task("generate", len(due), "image") as step:
            for done, i in enumerate(due, 1):
                settings = replace(config, seed=config.seed + i)
                write_image(
                    mine[i], picture(backbone, encoder, samples[i].labels, "", settings), overwrite=True
                )
                step(done, "")
    for file, one in zip(theirs, samples, strict=True):
        if not is_whole(file):
            write_image(file, one.real, overwrite=True)
    return mine, theirs


def check(out: Path, encoder: LabelEncoder, config: Config, data: Path | None = None) -> None:
    """Raise OutputError where ``out`` holds images that were made with other settings, or of other data."""
    check_note(out / _NOTE, _facts(encoder, config, data), "choose another --out")


def _facts(encoder: LabelEncoder, config: Config, data: Path | None) -> dict[str, Any]:
    """What the images depend on."""
    weights = hashlib.sha256()
    for file in sorted(encoder.folder.glob("*.safetensors")):
        weights.update(file.read_bytes())
    source = "drawn scenes" if data is None else str(data.resolve())
    return {**sampling_facts(config), "encoder": weights.hexdigest()[:16], "data": source}


# -- the judges' figures -------------------------------------------------------------------------------------


def judged(
    kind: Kind, samples: Sequence[LabelSample], encoder: LabelEncoder, files: Sequence[Path],
    warn: Callable[[str], None],
) -> list[Score]:  # fmt: skip
    """The figures of the drawn world's judges; none, with a warning, for labels that they do not know."""
    labels = encoder.encoder.labels
    if not set(labels) <= set(composition_judge.NAMES):
        warn("the judges know only the drawn world's objects: the labels are not checked")
        return []
    if samples[0].real.shape[:2] != (composition_judge.SIDE,) * 2:
        raise ConfigError(f"the judges take images of {composition_judge.SIDE} pixels", "leave out --size")
    frames = np.stack([read_image(file) for file in files])
    if kind == "class":
        return _of_classes(samples, labels, frames)
    return _of_layouts(samples, labels, frames)


@torch.no_grad()
def _of_classes(
    samples: Sequence[LabelSample], labels: Sequence[str], frames: NDArray[np.uint8]
) -> list[Score]:
    network = judge.load_judge(BUILTIN_FOLDER / "judge")
    logits = network(torch.stack([to_tensor(frame) for frame in frames]))["object"]
    classes = judge.ANSWERS["object"]
    right = sum(
        classes[int(found)] == labels[one.labels.numbers[0]]
        for found, one in zip(logits.argmax(1), samples, strict=True)
    )
    made = [_share("class right", right, len(samples), "the judge")]
    if len(samples) >= _SPLITS:
        mean, spread = fidelity.inception_score(logits, _SPLITS)
        half = STUDENT * spread / math.sqrt(_SPLITS - 1)
        made.append(
            Score("is", "IS", "higher", 3, mean, mean - half, mean + half, len(samples), 0,
                  f"the judge's {len(classes)} classes", f"{_SPLITS} splits")
        )  # fmt: skip
    return made


def _of_layouts(
    samples: Sequence[LabelSample], labels: Sequence[str], frames: NDArray[np.uint8]
) -> list[Score]:
    network = composition_judge.load(BUILTIN_FOLDER / "composition-judge")
    detections = composition_verdict.detect(network, frames)
    real = composition_verdict.detect(network, np.stack([one.real for one in samples]))
    who, boxes = "the composition judge", sum(len(one.labels.numbers) for one in samples)
    placed, there, ceiling = (
        sum(counted(one.labels, labels, objects, inside) for one, objects in zip(samples, found, strict=True))
        for found, inside in ((detections, True), (detections, False), (real, True))
    )
    return [
        _share("boxes with their label", placed, boxes, who),
        _share("labels anywhere", there, boxes, who),
        _share("boxes, real images", ceiling, boxes, who),
    ]


def counted(wanted: Labels, labels: Sequence[str], found: Detections, inside: bool) -> int:
    """Number of boxes for which the judge finds an object with the label; each object counts for one box.

    With ``inside`` the object's centre is in the box; the boxes nearest to their objects come first.
    """
    pairs = []
    for b, (number, (x0, y0, x1, y1)) in enumerate(zip(wanted.numbers, wanted.boxes, strict=True)):
        for o, one in enumerate(found.objects):
            within = x0 <= one.x <= x1 and y0 <= one.y <= y1
            if one.name == labels[number] and (within or not inside):
                pairs.append((math.hypot(one.x - (x0 + x1) / 2, one.y - (y0 + y1) / 2), b, o))
    boxes: set[int] = set()
    objects: set[int] = set()
    for _, b, o in sorted(pairs):
        if b not in boxes and o not in objects:
            boxes.add(b)
            objects.add(o)
    return len(boxes)


def _share(title: str, right: int, count: int, who: str) -> Score:
    low, high = wilson(right, count)
    key = title.replace(",", "").replace(" ", "_")
    return Score(key, title, "higher", 3, right / count, low, high, count, 0, who, "Wilson")
