"""Check the models on held-out combinations, for the table in ctxedit/bundled/README.md: ``models check``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctxedit import config
from ctxedit.bundled.training.data import Scenes
from ctxedit.bundled.training.judge import ANSWERS, ask, load_judge, truth
from ctxedit.bundled.training.parts import find
from ctxedit.bundled.training.results import FOLDERS
from ctxedit.bundled.world import scenes
from ctxedit.bundled.world.vocabulary import GREY_STYLES
from ctxedit.config import BUILTIN
from ctxedit.errors import ConfigError
from ctxedit.models.backbone import Backbone
from ctxedit.models.captioner import Blip2Captioner
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.stages import metrics
from ctxedit.stages.caption import caption
from ctxedit.stages.generate import generate
from ctxedit.workbench import Reporter


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured on how many; reached is a value of at least ``wanted``."""

    part: str
    figure: str
    value: float
    wanted: float
    count: int


@dataclass(frozen=True)
class Checked:
    """What is checked, and how much of it.

    Attributes:
        weights: folder of the models; parts that it lacks are the built-in ones.
        count: held-out scenes, or pictures, for each part.
        pairs: clips for the edits, each with a target of three kinds.
        seed: of all of them.
        work: folder for the clips and runs of the edits: an interrupted check goes on there.
        settings: of edits and pictures, over the preset's: a quick look takes fewer frames and steps.
    """

    weights: Path = BUILTIN_FOLDER
    count: int = 100
    pairs: int = 20
    seed: int = 7
    work: Path = Path("check")
    settings: Mapping[str, Any] = field(default_factory=dict)

    def backbone(self) -> Backbone:
        """The denoiser and what belongs to it, on the CPU."""
        return Backbone.load(self.model, torch.device("cpu"), torch.float32)

    @property
    def model(self) -> str:
        """As the setting ``model`` has it."""
        return BUILTIN if self.weights.resolve() == BUILTIN_FOLDER.resolve() else str(self.weights)


def check(
    what: Checked, parts: Sequence[str] = tuple(FOLDERS), reporter: Reporter | None = None
) -> Iterator[Row]:
    """Measure parts, in the order of ``FOLDERS``; raises ConfigError for a part there is no check of."""
    from ctxedit.bundled.training import check_compositions
    from ctxedit.bundled.training.check_editing import check_editing

    checks: dict[str, Callable[[Checked, Reporter], Iterator[Row]]] = {
        "autoencoder": _autoencoder,
        "clip": _clip,
        "captioner": _captioner,
        "text-to-image": _text_to_image,
        "editing": check_editing,
        "composition-judge": check_compositions.check_judge,
        "compositions": check_compositions.check_pictures,
    }
    if unknown := sorted(set(parts) - set(checks)):
        raise ConfigError(f"no check of {unknown[0]!r}", f"there are: {', '.join(checks)}")
    for name in checks:
        if name in parts:
            yield from checks[name](what, reporter or Reporter())


def _held_out(what: Checked, pairs: float = 0.0) -> list[scenes.Scene]:
    rng = np.random.default_rng(what.seed)
    return [scenes.draw_scene(rng, test=True, pairs=pairs) for _ in range(what.count)]


def _autoencoder(what: Checked, reporter: Reporter) -> Iterator[Row]:
    frames = np.stack([scenes.render_frame(s, 0.3)[0] for s in _held_out(what, 0.08)])
    backbone = what.backbone()
    with reporter.task("check autoencoder", 1) as progress:
        back = backbone.decode(backbone.encode(frames))
        progress(1, "")
    psnr = [metrics.psnr(a[None], b[None]) or 0.0 for a, b in zip(frames, back, strict=True)]
    row = partial(Row, "autoencoder", count=what.count)
    yield row("PSNR, dB", float(np.mean(psnr)), 30.0)
    yield row("SSIM", metrics.ssim(frames, back) or 0.0, 0.95)


def _clip(what: Checked, reporter: Reporter) -> Iterator[Row]:
    scorer, count = ClipScorer(find(what.weights, "clip")), what.count
    data = Scenes(what.seed, test=True)
    items = [data[i] for i in range(count)]
    frames = np.stack([_to_frame(item["image"]) for item in items])
    images, texts = scorer.embed_images(frames), scorer.embed_texts([item["caption"] for item in items])
    near = (images @ texts.T).argmax(1)
    # Two pictures may by chance show the same, worded differently: any wording of what is there is right.
    meant = [scenes.caption(data.scene(i)[0]) for i in range(count)]
    right = [meant[int(j)] == meant[i] for i, j in enumerate(near)]
    yield Row("clip", f"right caption of {count}", float(np.mean(right)), 0.90, count)
    rng = np.random.default_rng(what.seed)
    parts = ("object", "background", "style", "colour")
    with reporter.task("check clip", len(parts) * count) as progress:
        for number, part in enumerate(parts):
            falls: list[bool] = []
            while len(falls) < count:
                scene = scenes.draw_scene(rng, test=True, pairs=0.0)
                if part == "colour" and (scene.actors[0].colour is None or scene.style in GREY_STYLES):
                    continue
                image = scorer.embed_images(scenes.render_frame(scene, float(rng.random()))[0][None])
                both = scorer.embed_texts(
                    [scenes.caption(s) for s in (scene, scenes.change(scene, rng, part))]
                )
                score = (image @ both.T)[0]
                falls.append(bool(score[0] > score[1]))
                progress(number * count + len(falls), "")
            yield Row("clip", f"falls when the {part} is wrong", float(np.mean(falls)), 0.95, count)


def _captioner(what: Checked, reporter: Reporter) -> Iterator[Row]:
    model, right = Blip2Captioner(find(what.weights, "captioner")), []
    scorer = ClipScorer(find(what.weights, "clip"))
    with reporter.task("check captioner", what.count) as progress:
        for scene in _held_out(what):
            said = caption(scenes.render(scene, 8)[0], model, scorer)
            # Object, background and style: the canonical caption without its colour.
            right.append(_colourless(said) == _colourless(scenes.caption(scene)))
            progress(len(right), "")
    yield Row("captioner", "object, background, style all right", float(np.mean(right)), 0.90, what.count)


def _text_to_image(what: Checked, reporter: Reporter) -> Iterator[Row]:
    judge, backbone = load_judge(find(what.weights, "judge")), what.backbone()
    settings = config.load(
        "contextdiff", flags={"edit": {"steps": 25, "guidance": 5.0}, "invert": {"steps": 25}}, environ={}
    )
    settings = config.merge(settings, what.settings)
    hits: dict[str, list[bool]] = {k: [] for k in ANSWERS}
    with reporter.task("check text-to-image", what.count) as progress:
        for i, scene in enumerate(_held_out(what)):
            picture = generate(backbone, scenes.caption(scene), config.merge(settings, {"seed": i}))
            said, meant = ask(judge, picture)[0], truth(scene)
            for k in ANSWERS:
                if k != "colour" or meant[k] != "none":
                    hits[k].append(said[k] == meant[k])
            progress(i + 1, "")
    for k, wanted in (("object", 0.90), ("background", 0.95), ("style", 0.95), ("colour", 0.85)):
        if hits[k]:  # a small slice may show no colour
            share = float(np.mean(hits[k]))
            yield Row("text-to-image", f"{k} right, by the judge", share, wanted, len(hits[k]))


def _to_frame(image: torch.Tensor) -> np.ndarray:
    return ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()


def _colourless(text: str) -> str:
    words = [w for w in text.replace(" ,", ",").split() if w not in ANSWERS["colour"]]
    return " ".join("a" if w == "an" else w for w in words)
