"""How well a clip comes back from its inversion: a bad inversion is a bad edit, and this says so before it.

The whole way samples the source prompt from the inverted noise, without guidance and fusion. The estimate
asks the network at a few levels alone: each step down, from where the inversion was, misses the level below
by an error of its own. In the coordinates x/α these errors add up to that of the whole way, as far as the
network is linear. On the built-in models the estimate was 2 to 10 dB below what the whole way gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctxedit.config import Config, Solver
from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.multistep import History
from ctxedit.diffusion.schedule import Levels
from ctxedit.metrics.formulas import PSNR_MOST, psnr
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone
from ctxedit.models.conditioning import Condition
from ctxedit.models.shift import ContextShift
from ctxedit.stages.invert import Progress, no_progress
from ctxedit.stages.sample import Sampling, sample

#: Levels that the estimate evaluates, and frames that are decoded for each figure.
_ASKED, _DECODED = 4, 4
#: Below these, in dB against the autoencoder's own reconstruction, an edit loses the clip.
_LOW = {"estimate": 17.0, "whole": 20.0}


@dataclass(frozen=True)
class RoundTrip:
    """Peak signal-to-noise ratios in dB.

    Attributes:
        psnr: the clip that comes back against the autoencoder's own reconstruction of it.
        autoencoder: that reconstruction against the clip: no edit is closer.
        kind: ``estimate`` or ``whole``.
    """

    psnr: float
    autoencoder: float
    kind: str

    def facts(self) -> dict[str, Any]:
        """For ``run.toml``."""
        return {"psnr": self.psnr, "autoencoder_psnr": self.autoencoder, "kind": self.kind}

    @classmethod
    def of_facts(cls, facts: dict[str, Any]) -> RoundTrip:
        """The inverse of :meth:`facts`."""
        return cls(float(facts["psnr"]), float(facts["autoencoder_psnr"]), str(facts["kind"]))

    @property
    def low(self) -> bool:
        """Whether edits will lose the clip."""
        return self.psnr < _LOW[self.kind]

    def summary(self) -> str:
        """In a line."""
        about = "about " if self.kind == "estimate" else ""
        return (
            f"round trip: the clip comes back from its inversion at {about}{self.psnr:.1f} dB "
            f"(the autoencoder's own: {self.autoencoder:.1f} dB)"
        )


def network_passes(config: Config) -> int:
    """Passes of the network over the clip that :func:`round_trip` makes; a clip in windows is left out."""
    long = config.clip.frames > config.window.size
    if long or config.edit.start == "noise" or config.round_trip in ("auto", "off"):
        return 0
    steps = config.invert.steps
    if config.round_trip == "whole":
        return steps
    return sum(_evaluations(level, steps, config.edit.solver) for level in _estimated_levels(steps))


def _evaluations(level: int, steps: int, solver: Solver) -> int:
    """Of the step down from a level: one of second order needs the prediction of the level above, too."""
    return 2 if solver != "ddim" and level < steps else 1


def _estimated_levels(steps: int) -> list[int]:
    """Levels that steps down are taken from, evenly spread over 1 … ``steps``."""
    count = min(_ASKED, steps)
    return [1 + int((i + 0.5) * steps / count) for i in range(count)]


@torch.no_grad()
def round_trip(
    backbone: Backbone,
    trajectory: Tensor,
    context: Condition,
    levels: Levels,
    view: FrameView,
    shift: ContextShift | None,
    whole: bool,
    frames: Any,
    progress: Progress = no_progress,
    solver: Solver = "ddim",
) -> RoundTrip:
    """Measure, or estimate, how well a clip comes back.

    Args:
        backbone: with clip attention installed.
        trajectory: (S + 1, F, C, h, w) of the inversion.
        context: one row, of the prompt that was inverted with.
        levels: S used levels.
        view: one branch.
        shift: b_t of the same prompt, or None.
        whole: sample the whole way, S passes of the network; otherwise estimate it from a few.
        frames: uint8 (F, H, W, 3), what was encoded.
        progress: called with (done, total) passes.
        solver: of the sampling.
    """
    clean = trajectory[0]
    if whole:
        how = Sampling(1.0, solver=solver)
        both = Condition.stack([context, context])
        back = sample(backbone, trajectory[-1], both, levels, view, how, shift, None, progress)
    else:
        missed, chosen = torch.zeros_like(clean), _estimated_levels(levels.steps)
        each = [_evaluations(level, levels.steps, solver) for level in chosen]
        for number, high in enumerate(chosen, 1):
            missed += _error(backbone, trajectory, context, levels, view, shift, high, solver)
            progress(sum(each[:number]), sum(each))
        back = clean + missed * (levels.steps / len(chosen))
    count = min(_DECODED, len(clean))
    some = [round(i * (len(clean) - 1) / max(1, count - 1)) for i in range(count)]
    own, returned = backbone.decode(clean[some]), backbone.decode(back[some])
    return RoundTrip(_psnr(returned, own), _psnr(own, frames[some]), "whole" if whole else "estimate")


def _error(
    backbone: Backbone,
    trajectory: Tensor,
    context: Condition,
    levels: Levels,
    view: FrameView,
    shift: ContextShift | None,
    high: int,
    solver: Solver,
) -> Tensor:
    """What the step down from a level misses the inversion's lower level by, brought to clean latents."""
    history = History(_evaluations(high, levels.steps, solver) > 1)

    def predict(level: int) -> Tensor:
        x = trajectory[level]
        return backbone.predict_x0(x, levels.timestep(level), context, *levels.at(level), view)

    if history.second_order:
        history.improve(predict(high + 1), levels.at(high + 1), levels.at(high))
    low, x, x0 = high - 1, trajectory[high], predict(high)
    b_high, b_low = (None if shift is None else shift.at(x0, levels, level) for level in (high, low))
    best = history.improve(x0, levels.at(high), levels.at(low))
    down = ddim(x, best, *levels.at(high), *levels.at(low), b_high, b_low)
    return (down - trajectory[low]) / float(levels.at(low)[0])


def _psnr(one: Any, other: Any) -> float:
    """In dB, finite for equal images too."""
    return min(PSNR_MOST, float(psnr(one, other) or 0.0))
