"""The drawn world's own judge: was the edit made, and did the rest stay?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctxedit.metrics import Edit, metric

if TYPE_CHECKING:
    from ctxedit.synthetic.judge import Judge

#: What an edit is for and what it must not do, each at most 1: one number to choose settings by.
_SHARES = ("judge_asked", "judge_kept", "ssim_kept")
_SIDE = 64  # what the judge takes


@metric("balance", title="balance", needs="", better="higher", decimals=3, where="bench", order=0)
def balance(edit: Edit) -> float | None:
    """mean of judge: asked, judge: kept and SSIM kept, of those there are"""
    shares = [v for key in _SHARES if (v := edit.value(key)) is not None]
    return float(np.mean(shares)) if shares else None


@metric(
    "judge_asked",
    title="judge: asked",
    needs="expected",
    better="higher",
    decimals=2,
    where="bench",
    order=50,
)
def judge_asked(edit: Edit) -> float | None:
    """share of frames that show what was asked"""
    # An edit of no one part asks for all that is expected of it.
    part = _is_one_part(edit.kind)
    asked = [v for question, v in answers(edit).items() if question == edit.kind or not part]
    return float(np.mean(asked)) if asked else None


@metric(
    "judge_kept", title="judge: kept", needs="expected", better="higher", decimals=2, where="bench", order=60
)
def judge_kept(edit: Edit) -> float | None:
    """share of answers right about what should stay"""
    part = _is_one_part(edit.kind)
    rest = [v for question, v in answers(edit).items() if question != edit.kind and part]
    return float(np.mean(rest)) if rest else None


def answers(edit: Edit) -> dict[str, float]:
    """For each question, the share of frames to which the judge gives the expected answer; {} without any."""
    expected = edit.expected or {}
    if not expected:
        return {}

    def ask_judge() -> dict[str, float]:
        from ctxedit.synthetic.judge import ask

        said = ask(edit.networks.once("judge", _load), _small(edit.frames))
        return {q: float(np.mean([given[q] == answer for given in said])) for q, answer in expected.items()}

    return edit.once("judge", ask_judge)


def _load() -> Judge:
    from ctxedit.models.weights import BUILTIN_FOLDER
    from ctxedit.synthetic.judge import load_judge

    return load_judge(BUILTIN_FOLDER / "judge")


def _is_one_part(kind: str) -> bool:
    from ctxedit.synthetic.judge import ANSWERS

    return kind in ANSWERS


def _small(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if frames.shape[1:3] == (_SIDE, _SIDE):
        return frames
    return np.stack(
        [np.asarray(Image.fromarray(f).resize((_SIDE, _SIDE), Image.Resampling.BOX)) for f in frames]
    )
