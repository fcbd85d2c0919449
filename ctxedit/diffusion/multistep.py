"""Second-order multistep: a prediction extrapolated from the last two, at no further network evaluation.

Over one step between two levels, DDIM takes the network's prediction to be constant. DPM-Solver++(2M) (Lu et
al., arXiv 2211.01095) takes it to be linear in ``lambda = log(alpha / sigma)``. Both solve the same equation,
so a second-order step is a DDIM step with another prediction, and shifts, masks and fusion stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctxedit.diffusion.broadcast import Level, as_level, per_sample

#: A level as (alpha, sigma).
Pair = tuple[Level, Level]


@dataclass
class History:
    """What one step of a walk over the levels leaves for the next.

    Attributes:
        second_order: whether steps are of second order; DDIM's are not, and nothing is kept.
        before: the prediction of the step before, (B, ...); None in the first step.
        level: the level that it was made at.
    """

    second_order: bool = False
    before: Tensor | None = None
    level: Pair | None = None

    def improve(self, now: Tensor, start: Pair, end: Pair) -> Tensor:
        """The prediction to hand to `ddim` for the step from ``start`` to ``end``; remembers ``now``.

        ``now`` is the prediction made at ``start``, of ``x_0`` for steps down and of the noise for steps up.
        """
        if not self.second_order:
            return now
        best = extrapolate(now, self.before, self.level, start, end)
        self.before, self.level = now, start
        return best


def extrapolate(now: Tensor, before: Tensor | None, previous: Pair | None, start: Pair, end: Pair) -> Tensor:
    """The prediction of a second-order step.

        now + (h / (2 h_before)) (now - before),  h = lambda(end) - lambda(start)

    Downwards ``now`` is the prediction of ``x_0`` (DPM-Solver++, Eq 4.5 in its midpoint form); upwards it is
    that of the noise (DPM-Solver), which is well behaved near clean data.

    Args:
        now: the prediction at ``start``, (B, ...).
        before: the one of the step before, as ``now``; None in the first step, which is of first order.
        previous: the level of ``before``, as (alpha, sigma), each float, 0-d or (B,).
        start, end: the levels of this step.

    Returns:
        As ``now``; ``now`` itself where a level is clean data or pure noise, whose lambda is infinite.
    """
    if before is None or previous is None:
        return now
    lambdas = [_log_ratio(*level) for level in (previous, start, end)]
    if not all(bool(torch.isfinite(one).all()) for one in lambdas):
        return now
    weight = (lambdas[2] - lambdas[1]) / (2 * (lambdas[1] - lambdas[0]))
    return now + per_sample(weight, now) * (now - before)


def _log_ratio(alpha: Level, sigma: Level) -> Tensor:
    """``log(alpha / sigma)``; infinite at clean data and at pure noise."""
    return as_level(alpha).log() - as_level(sigma).log()
