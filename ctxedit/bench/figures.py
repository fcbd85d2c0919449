"""The figures of one edit, and how each is called, read and rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctxedit.bench.listing import Clip, Target
from ctxedit.bundled.training.composition_judge import CompositionJudge, load
from ctxedit.bundled.training.composition_verdict import judge, look
from ctxedit.bundled.training.judge import ANSWERS, Judge, ask, load_judge
from ctxedit.bundled.world.compositions import Composition
from ctxedit.models.clip import ClipScorer
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.stages import metrics
from ctxedit.stages.evaluate import evaluate
from ctxedit.stages.flow import warp_error
from ctxedit.stages.structure import patch_descriptors, structure_distance

#: Part of what a finished edit is known by: figures of another version are measured again.
VERSION = 2
#: Stands for the infinite PSNR of equal pixels, which would have no mean.
PSNR_MOST = 100.0
#: Kinds where the rest is what lies outside the mask; of a new background it is what lies inside.
_OUTSIDE = ("object", "colour", "count", "size", "relation", "other")
_JUDGED_SIDE = 64
#: What an edit is for and what it must not do, each at most 1: one number to choose settings by.
_SHARES = ("judge_asked", "judge_kept", "ssim_kept")

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Figure:
    """A column: its key, its heading, which way is better, digits after the point, what it is."""

    key: str
    title: str
    better: Literal["higher", "lower"]
    digits: int
    about: str


FIGURES: tuple[Figure, ...] = (
    Figure(
        "balance",
        "balance",
        "higher",
        3,
        "mean of judge: asked, judge: kept and SSIM kept, of those there are",
    ),
    Figure("clip_text", "CLIP-text", "higher", 3, "mean cosine of frames and target prompt"),
    Figure("clip_temp", "CLIP-temp", "higher", 3, "mean cosine over all pairs of frames"),
    Figure("clip_temp_consecutive", "consecutive", "higher", 3, "mean cosine of neighbouring frames"),
    Figure(
        "frame_accuracy", "frame acc.", "higher", 2, "share of frames nearer to target than source prompt"
    ),
    Figure("judge_asked", "judge: asked", "higher", 2, "share of frames that show what was asked"),
    Figure("judge_kept", "judge: kept", "higher", 2, "share of answers right about what should stay"),
    Figure(
        "judge_all",
        "judge: all",
        "higher",
        2,
        "share of frames with every object, colour, number, size and place right (compositions)",
    ),
    Figure(
        "psnr_kept", "PSNR kept", "higher", 1, "dB against the source where the edit should change nothing"
    ),
    Figure("ssim_kept", "SSIM kept", "higher", 3, "structural similarity in the same place"),
    Figure("psnr", "PSNR", "higher", 1, "dB against the source, whole frames"),
    Figure("psnr_ideal", "PSNR ideal", "higher", 1, "dB against the true edit"),
    Figure("structure", "structure", "lower", 3, "distance of patch self-similarities from the source's"),
    Figure("warp_error", "warp error", "lower", 4, "squared error along the source's optical flow"),
)


@dataclass(frozen=True)
class Truth:
    """What an edit is compared with, at working size; masks as for the edit, not yet by kind.

    Attributes:
        source: RGB uint8 (F, h, w, 3).
        mask: (F, h, w) in [0, 1], the object; or None.
        ideal: RGB uint8 (F, h, w, 3); or None.
    """

    source: NDArray[np.uint8]
    mask: NDArray[np.float32] | None = None
    ideal: NDArray[np.uint8] | None = None


class Measure:
    """Measures edits; loads the judge when it is first asked.

    Args:
        scorer: the CLIP model.
    """

    def __init__(self, scorer: ClipScorer) -> None:
        self.scorer = scorer
        self._judge: Judge | None = None
        self._composition_judge: CompositionJudge | None = None

    def __call__(self, frames: NDArray[np.uint8], clip: Clip, target: Target, truth: Truth) -> Values:
        """Every figure of ``FIGURES`` for RGB uint8 frames (F, h, w, 3); None where one does not apply."""
        changed = _may_change(target.kind, truth.mask)
        of = evaluate(frames, target.prompt, self.scorer, truth.source, clip.prompt, changed)
        kept = of if changed is not None else None
        tokens = [patch_descriptors(self.scorer, x) for x in (truth.source, frames)]
        found: dict[str, float | None] = {
            "clip_text": of.clip_text,
            "clip_temp": of.clip_temp,
            "clip_temp_consecutive": of.clip_temp_consecutive,
            "frame_accuracy": of.frame_accuracy,
            "psnr": metrics.psnr(frames, truth.source),
            "psnr_kept": kept.psnr if kept else None,
            "ssim_kept": kept.ssim if kept else None,
            "psnr_ideal": None if truth.ideal is None else metrics.psnr(frames, truth.ideal),
            "structure": structure_distance(*tokens),
            "warp_error": warp_error(truth.source, frames),
            **self._judged(frames, target),
        }
        shares = [v for k in _SHARES if (v := found[k]) is not None]
        found["balance"] = float(np.mean(shares)) if shares else None
        return {k: _bounded(v) for k, v in found.items()}

    def _judged(self, frames: NDArray[np.uint8], target: Target) -> dict[str, float | None]:
        """The judge's answers against what is expected: ``judge_asked``, ``judge_kept``, each by itself."""
        if target.composition is not None:
            return self._judged_composition(frames, target.composition, target)
        if not target.expect:
            return {"judge_asked": None, "judge_kept": None}
        if self._judge is None:
            self._judge = load_judge(BUILTIN_FOLDER / "judge")
        said = ask(self._judge, _small(frames))
        right = {
            question: float(np.mean([answers[question] == answer for answers in said]))
            for question, answer in target.expect.items()
        }
        # An edit of no one part asks for all that is expected of it.
        asked = [v for k, v in right.items() if k == target.kind or target.kind not in ANSWERS]
        rest = [v for k, v in right.items() if k != target.kind and target.kind in ANSWERS]
        return {
            "judge_asked": float(np.mean(asked)) if asked else None,
            "judge_kept": float(np.mean(rest)) if rest else None,
            **{f"judge_{question}": share for question, share in right.items()},
        }

    def _judged_composition(
        self, frames: NDArray[np.uint8], asked: Composition, target: Target
    ) -> dict[str, float | None]:
        """The composition judge's verdicts; what changes is one group, or how the two stand.

        The relation to a group that changes counts among all alone: it cannot hold while that is not there.
        """
        if self._composition_judge is None:
            self._composition_judge = load(BUILTIN_FOLDER / "composition-judge")
        looks = look(self._composition_judge, _small(frames))
        verdicts = [judge(asked, seen.objects) for seen in looks]
        kept = [right for v in verdicts for i, right in enumerate(v.groups) if i != target.changed]
        if "background" in target.expect:
            kept += [seen.background == target.expect["background"] for seen in looks]
        wanted = [v.relation if target.changed is None else v.groups[target.changed] for v in verdicts]
        return {
            "judge_asked": float(np.mean(wanted)),
            "judge_kept": float(np.mean(kept)) if kept else None,
            "judge_all": float(np.mean([v.all_right for v in verdicts])),
        }


def mean_of(rows: Sequence[Values], key: str) -> float | None:
    """Mean of a figure over rows that have it."""
    values = [v for row in rows if (v := row.get(key)) is not None]
    return float(np.mean(values)) if values else None


def _may_change(kind: str, mask: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    """Where an edit of this kind may change the picture; None where it may everywhere, or nobody knows."""
    if mask is None or kind == "style":
        return None
    return mask if kind in _OUTSIDE else 1 - mask


def _small(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames at the judge's size."""
    if frames.shape[1:3] == (_JUDGED_SIDE, _JUDGED_SIDE):
        return frames
    size = (_JUDGED_SIDE, _JUDGED_SIDE)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BOX)) for f in frames])


def _bounded(value: float | None) -> float | None:
    return None if value is None else min(float(value), PSNR_MOST)
