"""The drawn world's own judge: was the edit made, and did the rest stay?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctxedit.metrics import Edit, metric
from ctxedit.metrics.registry import value_of

if TYPE_CHECKING:
    from ctxedit.synthetic.composition_judge import CompositionJudge
    from ctxedit.synthetic.composition_verdict import Detections, Verdict
    from ctxedit.synthetic.judge import Judge

#: What an edit is for and what it must not do, each at most 1: one number to choose settings by.
_SHARES = ("judge_asked", "judge_kept", "ssim_kept")
_SIDE = 64  # what the judge takes


@metric("balance", title="balance", needs="", better="higher", decimals=3, where="bench", order=0)
def balance(edit: Edit) -> float | None:
    """mean of edit found, rest kept and SSIM kept, of those there are"""
    shares = [v for key in _SHARES if (v := value_of(edit, key)) is not None]
    return float(np.mean(shares)) if shares else None


@metric(
    "judge_asked",
    title="edit found",
    needs="expected",
    better="higher",
    decimals=2,
    where="bench",
    order=50,
)
def judge_asked(edit: Edit) -> float | None:
    """share of frames that show the edit, by the judge"""
    if edit.composition is not None:
        # The relation to a group that changes is left to judge_all: it cannot hold before the group is there.
        changed = edit.changed
        return float(
            np.mean([v.relation if changed is None else v.groups[changed] for v, _ in verdicts(edit)])
        )
    # An edit of no one part asks for all that is expected of it.
    part = _is_one_part(edit.kind)
    asked = [v for question, v in answers(edit).items() if question == edit.kind or not part]
    return float(np.mean(asked)) if asked else None


@metric(
    "judge_kept", title="rest kept", needs="expected", better="higher", decimals=2, where="bench", order=60
)
def judge_kept(edit: Edit) -> float | None:
    """share of the rest that is as it should be, by the judge"""
    if edit.composition is not None:
        return _composition_kept(edit)
    part = _is_one_part(edit.kind)
    rest = [v for question, v in answers(edit).items() if question != edit.kind and part]
    return float(np.mean(rest)) if rest else None


@metric(
    "judge_all",
    title="all right",
    needs="composition",
    better="higher",
    decimals=2,
    where="bench",
    order=65,
)
def judge_all(edit: Edit) -> float | None:
    """share of frames with every object, colour, number, size and place right, by the judge (compositions)"""
    return float(np.mean([verdict.all_right for verdict, _ in verdicts(edit)]))


def _composition_kept(edit: Edit) -> float | None:
    """Share of right groups among those that should stay, and of right backgrounds where one is expected."""
    judged = verdicts(edit)
    kept = [right for v, _ in judged for i, right in enumerate(v.groups) if i != edit.changed]
    if background := (edit.expected or {}).get("background"):
        kept += [found.background == background for _, found in judged]
    return float(np.mean(kept)) if kept else None


def verdicts(edit: Edit) -> list[tuple[Verdict, Detections]]:
    """The composition judge's verdict on each frame, and its detections; [] without a composition."""
    composition = edit.composition
    if composition is None:
        return []

    def judge_frames() -> list[tuple[Verdict, Detections]]:
        from ctxedit.synthetic.composition_verdict import detect, judge

        detections = detect(edit.networks.once("composition judge", _load_composition), _small(edit.frames))
        return [(judge(composition, found.objects), found) for found in detections]

    return edit.once("composition judge", judge_frames)


def answers(edit: Edit) -> dict[str, float]:
    """For each question, the share of frames to which the judge gives the expected answer.

    Empty without expected answers, and for a composition, which the composition judge scores.
    """
    expected = edit.expected or {}
    if not expected or edit.composition is not None:
        return {}

    def ask_judge() -> dict[str, float]:
        from ctxedit.synthetic.judge import classify

        said = classify(edit.networks.once("judge", _load), _small(edit.frames))
        return {q: float(np.mean([given[q] == answer for given in said])) for q, answer in expected.items()}

    return edit.once("judge", ask_judge)


def _load() -> Judge:
    from ctxedit.models.weights import BUILTIN_FOLDER
    from ctxedit.synthetic.judge import load_judge

    return load_judge(BUILTIN_FOLDER / "judge")


def _load_composition() -> CompositionJudge:
    from ctxedit.models.weights import BUILTIN_FOLDER
    from ctxedit.synthetic.composition_judge import load

    return load(BUILTIN_FOLDER / "composition-judge")


def _is_one_part(kind: str) -> bool:
    from ctxedit.synthetic.judge import ANSWERS

    return kind in ANSWERS


def _small(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if frames.shape[1:3] == (_SIDE, _SIDE):
        return frames
    return np.stack(
        [np.asarray(Image.fromarray(f).resize((_SIDE, _SIDE), Image.Resampling.BOX)) for f in frames]
    )
