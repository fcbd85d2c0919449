"""Check the built-in models on held-out combinations: what the README's table says.

``python -m ctxedit.bundled.training --check [--count N]``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ctxedit import config
from ctxedit.bundled.training.data import Scenes
from ctxedit.bundled.training.judge import ANSWERS, ask, load_judge, truth
from ctxedit.bundled.world import scenes
from ctxedit.bundled.world.vocabulary import GREY_STYLES
from ctxedit.models.backbone import Backbone
from ctxedit.models.captioner import Blip2Captioner
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.stages import metrics
from ctxedit.stages.caption import caption
from ctxedit.stages.generate import generate


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured on how many, and what issue 4 asks of it."""

    part: str
    figure: str
    value: float
    wanted: float
    count: int


def check(count: int = 100, seed: int = 7, weights: Path = BUILTIN_FOLDER) -> Iterator[Row]:
    """Measure every part on ``count`` held-out scenes each; text-to-image on ``count`` samples."""
    backbone = Backbone.load("builtin", torch.device("cpu"), torch.float32)
    yield from _autoencoder(backbone, count, seed)
    yield from _clip(ClipScorer(weights / "clip"), count, seed)
    yield from _captioner(Blip2Captioner(weights / "captioner"), count, seed)
    yield from _text_to_image(backbone, weights, count, seed)


def _held_out(count: int, seed: int, pairs: float = 0.0) -> list[scenes.Scene]:
    rng = np.random.default_rng(seed)
    return [scenes.draw_scene(rng, test=True, pairs=pairs) for _ in range(count)]


def _autoencoder(backbone: Backbone, count: int, seed: int) -> Iterator[Row]:
    frames = np.stack([scenes.render_frame(s, 0.3)[0] for s in _held_out(count, seed, 0.08)])
    back = backbone.decode(backbone.encode(frames))
    psnr = [metrics.psnr(a[None], b[None]) or 0.0 for a, b in zip(frames, back, strict=True)]
    yield Row("autoencoder", "PSNR, dB", float(np.mean(psnr)), 30.0, count)
    yield Row("autoencoder", "SSIM", metrics.ssim(frames, back) or 0.0, 0.95, count)


def _clip(scorer: ClipScorer, count: int, seed: int) -> Iterator[Row]:
    data = Scenes(seed, test=True)
    items = [data[i] for i in range(count)]
    frames = np.stack([_to_frame(item["image"]) for item in items])
    images, texts = scorer.embed_images(frames), scorer.embed_texts([item["caption"] for item in items])
    near = (images @ texts.T).argmax(1)
    # Two scenes may by chance have the same caption: finding either is right.
    right = [items[int(j)]["caption"] == items[i]["caption"] for i, j in enumerate(near)]
    yield Row("CLIP", f"right caption of {count}", float(np.mean(right)), 0.90, count)
    rng = np.random.default_rng(seed)
    for part in ("object", "background", "style", "colour"):
        falls = []
        while len(falls) < count:
            scene = scenes.draw_scene(rng, test=True, pairs=0.0)
            if part == "colour" and (scene.actors[0].colour is None or scene.style in GREY_STYLES):
                continue
            image = scorer.embed_images(scenes.render_frame(scene, float(rng.random()))[0][None])
            both = scorer.embed_texts([scenes.caption(s) for s in (scene, scenes.change(scene, rng, part))])
            score = (image @ both.T)[0]
            falls.append(bool(score[0] > score[1]))
        yield Row("CLIP", f"falls when the {part} is wrong", float(np.mean(falls)), 0.95, count)


def _captioner(model: Blip2Captioner, count: int, seed: int) -> Iterator[Row]:
    right = []
    for scene in _held_out(count, seed):
        said = caption(scenes.render(scene, 8)[0], model)
        # Object, background and style: the canonical caption without its colour.
        right.append(_colourless(said) == _colourless(scenes.caption(scene)))
    yield Row("captioner", "object, background, style all right", float(np.mean(right)), 0.90, count)


def _text_to_image(backbone: Backbone, weights: Path, count: int, seed: int) -> Iterator[Row]:
    judge = load_judge(weights / "judge")
    settings = config.load(
        "contextdiff", flags={"edit": {"steps": 25, "guidance": 5.0}, "invert": {"steps": 25}}, environ={}
    )
    hits: dict[str, list[bool]] = {k: [] for k in ANSWERS}
    for i, scene in enumerate(_held_out(count, seed)):
        picture = generate(backbone, scenes.caption(scene), config.merge(settings, {"seed": i}))
        said, meant = ask(judge, picture)[0], truth(scene)
        for k in ANSWERS:
            if k != "colour" or meant[k] != "none":
                hits[k].append(said[k] == meant[k])
    for k, wanted in (("object", 0.90), ("background", 0.95), ("style", 0.95), ("colour", 0.85)):
        yield Row("text-to-image", f"{k} right, by the judge", float(np.mean(hits[k])), wanted, len(hits[k]))


def _to_frame(image: torch.Tensor) -> np.ndarray:
    return ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()


def _colourless(text: str) -> str:
    words = [w for w in text.replace(" ,", ",").split() if w not in ANSWERS["colour"]]
    return " ".join("a" if w == "an" else w for w in words)
