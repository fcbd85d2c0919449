"""Zero-shot text to image on COCO's captions: one generated image per caption, resumable.

The FID-30K protocol: 30,000 images of the validation set, one random caption of each, and one generated image
per caption, compared with the real images at 256 pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ctxedit.config import Config
from ctxedit.editing import text_to_image
from ctxedit.editing.parts import warn_of_unknown_words
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import ConfigError, CtxeditError, InputError, OutputError
from ctxedit.files import LIST_LIMIT, is_inside, read_json
from ctxedit.media.stills import read_image
from ctxedit.media.temporary import atomic
from ctxedit.media.write import write_image
from ctxedit.models.backbones import Backbone, check_addons, open_with_addons
from ctxedit.models.device import pick_device, pick_dtype, settled_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.weights import identity, locate
from ctxedit.runs import fingerprint, key_of
from ctxedit.stages.generate import generate

_NOTE = "coco.json"
_HINT = "take captions_val2014.json of COCO's annotations_trainval2014.zip"


@dataclass(frozen=True)
class Item:
    """One COCO image and one of its captions."""

    id: int
    image: Path
    caption: str

    @property
    def name(self) -> str:
        """The generated image's file name."""
        return f"{self.id:012d}.png"


def choose(captions: Path, images: Path, count: int, seed: int = 0) -> list[Item]:
    """``count`` images at random and one caption of each; with the same seed, a smaller sample is a prefix of
    a larger one.

    Args:
        captions: in COCO's format: ``images`` with ``id`` and ``file_name``, ``annotations`` with ``id``,
            ``image_id`` and ``caption``.
        images: the folder of COCO's images.
        count: how many.
        seed: of the choice.

    Raises:
        InputError: not COCO's format, fewer images than ``count``, or an image that is not in the folder.
    """
    by_image, names = _read(captions)
    ids = sorted(by_image)
    if count > len(ids):
        raise InputError(
            f"{captions} has captions of {len(ids)} images, and --count is {count}",
            f"--count {len(ids)} is the maximum",
        )
    if not images.is_dir():
        raise InputError(f"{images} is not a folder", "give the folder of the captions' images, e.g. val2014")
    chosen = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]]
    items = [Item(i, images / names[i], _one_of(by_image[i], seed, i)) for i in chosen]
    if lacking := [item.image.name for item in items if not item.image.is_file()]:
        raise InputError(
            f"{images} lacks {len(lacking)} of {count} images, including {lacking[0]}",
            "give the folder of the captions' images, e.g. val2014",
        )
    return items


def make(
    items: Sequence[Item],
    out: Path,
    config: Config,
    offline: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    adapter: Path | None = None,
    source: str = "",
) -> list[Path]:
    """Generate missing images; returns all paths, in order.

    An image depends only on the settings, the seed and its own id, so the same call resumes an interrupted
    run. A file that cannot be read completely is generated again.

    Args:
        items: from :func:`choose`.
        out: the folder of generated images.
        config: model, seed, edit.steps, guidance, eta and negative prompt; ``clip.size``.
        offline: fetch nothing from the hub.
        overwrite: generate all of them again.
        reporter: receives progress.
        adapter: a context adapter of the model, or None.
        source: identifies where the captions are from; images of other captions are not reused.

    Raises:
        OutputError: ``out`` contains images of other settings, or cannot be written.
        WeightsError, ResourceError: as when a model is loaded.
    """
    teller = reporter or Reporter()
    check(out, config, overwrite, adapter, source)
    paths = [out / item.name for item in items]
    due = [(i, p) for i, p in zip(items, paths, strict=True) if overwrite or not is_whole(p)]
    if len(due) < len(items):
        teller.say(f"{len(items) - len(due)} of {len(items)} images are there already")
    if not due:
        return paths
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    checkpoint = locate(config.model, offline)
    addons = check_addons(config, checkpoint, offline)
    backbone = open_with_addons(config, checkpoint, addons, device, dtype)
    _write_note(out, _facts(config, adapter, source))
    network = None if adapter is None else text_to_image.load_adapter(adapter, backbone)
    texts = [_fitting(backbone, item.caption) for item, _ in due]
    if cut := sum(text != item.caption for text, (item, _) in zip(texts, due, strict=True)):
        teller.warn(f"{cut} captions are longer than the text encoder accepts and are truncated")
    warn_of_unknown_words(backbone, " ".join(texts[:20]), teller)  # enough to notice a wrong model
    side = config.clip.size
    with teller.task("generate", len(due), "image") as step:
        for done, (text, (item, path)) in enumerate(zip(texts, due, strict=True), 1):
            settings = replace(config, seed=_seed(config.seed, item.id))
            with backbone.room_for([text]):
                shift = None if network is None else ContextShift(network, backbone.embed([text]), 1)
            picture = generate(backbone, text, settings, 1, (side, side) if side else None, shift)[0]
            write_image(path, picture, overwrite=True)
            step(done, "")
    return paths


def check_apart(out: Path, captions: Path, images: Path) -> None:
    """Raise OutputError if generated images or their note would replace real images or the captions."""
    for place, what, given in ((out, "folder of real images", images), (out / _NOTE, "captions", captions)):
        if place.exists() and place.samefile(given):
            raise OutputError(f"the output {place} is the {what}", "choose another --out")


def check(
    out: Path,
    config: Config,
    overwrite: bool = False,
    adapter: Path | None = None,
    source: str = "",
    hint: str = "choose another --out, or -y to generate all of them again",
) -> None:
    """Raise OutputError if ``out`` contains images that were made with other settings.

    Raises:
        ConfigError: a ControlNet, for which there is no clip.
    """
    if config.control.kind != "none":
        raise ConfigError("there is no clip to compute a control map from", "choose another preset")
    if not overwrite:
        check_note(out / _NOTE, _facts(config, adapter, source), hint)


def check_note(note: Path, facts: Mapping[str, Any], hint: str) -> None:
    """Raise OutputError if a folder's note is damaged, or says that its images have other settings."""
    if not note.exists():
        return
    try:
        old = read_json(note, "note")
    except CtxeditError:
        old = None
    if not isinstance(old, dict) or "model" not in old:
        raise OutputError(f"{note} is damaged: how the images beside it were made is unknown", hint)
    # Earlier notes lack settings that had their present values, but never an adapter that was used.
    known = {**facts, "adapter": None, **old}
    if changed := sorted(key for key in facts if known.get(key) != facts[key]):
        key = changed[0]
        raise OutputError(
            f"{note.parent} holds images of another {key}: {known.get(key)}, now {facts[key]}", hint
        )


def _facts(config: Config, adapter: Path | None, source: str) -> dict[str, Any]:
    """The settings that the images depend on."""
    own = None if adapter is None else fingerprint(adapter)
    return {**sampling_facts(config), "adapter": own, "source of captions": source}


def sampling_facts(config: Config) -> dict[str, Any]:
    """What images of any condition depend on, as it is in a note."""
    edit = {key: value for key, value in asdict(config.edit).items() if key not in ("start", "strength")}
    known: dict[str, Any] = {
        "model": identity(config.model), "seed": config.seed, "size": config.clip.size, **edit,
        "dtype": settled_dtype(config.dtype, config.device), "lora": config.lora,
        "embedding": config.embedding, "attention": key_of(config.attention),
    }  # fmt: skip
    return cast("dict[str, Any]", json.loads(json.dumps(known)))  # tuples are lists in a note


def _write_note(out: Path, facts: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / _NOTE, True) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _read(captions: Path) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Captions in the order of their ids, and file names, by image."""
    found = read_json(captions, "file of captions", LIST_LIMIT)
    try:
        names = _names(captions, found["images"])
        by_image: dict[int, list[str]] = {}
        for one in sorted(found["annotations"], key=lambda one: int(one["id"])):
            if not isinstance(one["caption"], str):
                raise InputError(
                    f"{captions}: the caption {one['id']} is not text: {one['caption']!r}", _HINT
                )
            if text := " ".join(one["caption"].split()):
                by_image.setdefault(int(one["image_id"]), []).append(text)
        if strange := sorted(by_image.keys() - names.keys()):
            raise InputError(f"{captions} has captions of image {strange[0]}, which it does not list", _HINT)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{captions} is not in COCO's captions format", _HINT) from error
    if not by_image:
        raise InputError(f"{captions} has no captions", _HINT)
    return by_image, names


def _names(captions: Path, images: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """File names by the images' ids."""
    names: dict[int, str] = {}
    for one in images:
        number, name = int(one["id"]), one["file_name"]
        if not isinstance(name, str) or not is_inside(name):
            raise InputError(
                f"{captions}: image {number} has the file name {name!r}, not below the folder of images",
                "file names are relative to --images and without ..",
            )
        if names.setdefault(number, name) != name:
            raise InputError(f"{captions} lists image {number} twice: {names[number]} and {name}", _HINT)
    return names


def _one_of(texts: Sequence[str], seed: int, image: int) -> str:
    return texts[int(np.random.default_rng((seed, image)).integers(len(texts)))]


def _seed(seed: int, image: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {image}".encode()).digest()[:4], "big")


def is_whole(path: Path) -> bool:
    """Whether an image exists and can be decoded."""
    try:
        read_image(path)
    except InputError:
        return False
    return True


def _fitting(backbone: Backbone, caption: str) -> str:
    """A caption truncated to as many words as the text encoder accepts."""
    words = caption.split()
    while len(words) > 1:
        try:
            backbone.words(" ".join(words))
        except InputError:
            words.pop()
        else:
            break
    return " ".join(words)
