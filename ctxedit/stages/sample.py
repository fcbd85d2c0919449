"""Contextualized DDIM sampling with guidance, attention fusion and masks: one loop for edits and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctxedit.config import Config, FusionConfig, Solver
from ctxedit.diffusion.ddim import ddim, eta_std
from ctxedit.diffusion.guidance import guide_by_all
from ctxedit.diffusion.multistep import History
from ctxedit.diffusion.schedule import Levels
from ctxedit.errors import NumericsError
from ctxedit.models.alignment import columns
from ctxedit.models.attention import KEPT_SOURCE, AttentionRecorder, FrameView, Fusion, WordAlignment
from ctxedit.models.backbones import Backbone, Word
from ctxedit.models.conditioning import Condition
from ctxedit.models.deep_cache import DeepFeatures
from ctxedit.models.shift import ContextShift
from ctxedit.models.sites import halvings_at
from ctxedit.models.source_layers import SourceLayers
from ctxedit.stages.invert import Progress, no_progress
from ctxedit.stages.kept_source import KeptSource
from ctxedit.stages.passes import fused_counts, is_guided


@dataclass(frozen=True)
class Source:
    """What an edit takes from the source.

    Attributes:
        trajectory: (S + 1, F, C, h, w) of the inversion.
        context: one row, of the prompt that was inverted with.
        alignment: words of the target to words of the source.
        changed: content words that only the source has, and only the target has; for masks.
        exact: whether the inversion was refined: then its maps belong to the level itself, else (as the
            inversion asked the network) to the level below.
        kept: its branch's queries and keys, for this edit and those to come; None runs the branch each time.
    """

    trajectory: Tensor
    context: Condition
    alignment: WordAlignment
    changed: tuple[Sequence[Word], Sequence[Word]] = ((), ())
    exact: bool = False
    kept: KeptSource | None = None

    def latent(self, level: int) -> Tensor:
        """The latent that the inversion showed the network at this level's timestep."""
        return self.trajectory[level if self.exact else level - 1]


@dataclass
class Blend:
    """A mask from words: heat of the changed words, averaged over the steps so far."""

    threshold: float
    total: list[Tensor] = field(default_factory=list)
    steps: int = 0

    def add(self, recorders: Sequence[AttentionRecorder]) -> None:
        """Take one step's heat maps."""
        maps = [recorder.mean() for recorder in recorders]
        self.total = [a + b for a, b in zip(self.total, maps, strict=True)] if self.total else maps
        self.steps += 1

    def mask(self) -> Tensor:
        """(F, 1, h, w) in {0, 1}, at the size of the heat maps: the union of the words' masks."""
        masks = [word_mask(total / self.steps, self.threshold) for total in self.total]
        return torch.stack(masks).amax(0)


def word_mask(heat: Tensor, threshold: float) -> Tensor:
    """Heat (F, words, h, w) to a mask (F, 1, h, w): summed over words, 3×3 maximum, over the frame's maximum.

    FateZero's and prompt-to-prompt's recipe. ``heat`` has the size of the attention layers that it comes
    from: the 3×3 maximum dilates by one of *their* positions, which is four latents for the 16² layers of a
    64² latent. Whoever uses the mask enlarges it by nearest neighbour.
    """
    heat = F.max_pool2d(heat.sum(1, keepdim=True), 3, stride=1, padding=1)
    return (heat / heat.amax((1, 2, 3), keepdim=True).clamp(min=1e-8) > threshold).float()


@dataclass
class SamplingState:
    """What the steps of one sampling run hand on: masks, the prediction before, deep features."""

    blend: Blend
    history: History
    features: DeepFeatures


@dataclass(frozen=True)
class Sampling:
    """One sampling run.

    Attributes:
        guidance: 1 runs the conditional branch alone.
        weights: of the conditions, where there are several; the last one is the edit's target.
        cache_interval: see :class:`DeepFeatures`; steps that take from the source never use cached features.
        interval: the shares of the steps between which there is guidance; outside, as ``guidance`` 1.
        solver: ``ddim`` or ``dpm++2m``.
        eta: 0 deterministic, 1 ancestral.
        fusion: shares and blending; needs ``source``.
        source: the inverted clip, or None.
        mask: (F, 1, h, w) in [0, 1], where latents may differ from the source's; or None.
        generator: draws the noise of eta > 0.
        one_by_one: run the unconditional branch in a pass of its own: less memory, the same result.
        recorder: collects the conditional branch's cross-attention over all steps, for figures; or None.
    """

    guidance: float
    eta: float = 0.0
    fusion: FusionConfig = field(default_factory=FusionConfig)
    source: Source | None = None
    mask: Tensor | None = None
    generator: torch.Generator | None = None
    recorder: AttentionRecorder | None = None
    one_by_one: bool = False
    interval: tuple[float, ...] = (0.0, 1.0)
    solver: Solver = "ddim"
    weights: tuple[float, ...] = (1.0,)
    cache_interval: int = 1

    @classmethod
    def of(cls, config: Config, generator: torch.Generator, **more: Any) -> Sampling:
        """By the settings of ``edit`` and ``low_memory``."""
        edit = config.edit
        return cls(
            edit.guidance, edit.eta, generator=generator, one_by_one=config.low_memory,
            interval=edit.guidance_interval, solver=edit.solver, cache_interval=edit.cache_interval, **more,
        )  # fmt: skip

    def initial_state(self) -> SamplingState:
        """The state at the start of sampling."""
        blend, history = Blend(self.fusion.mask_threshold), History(self.solver != "ddim")
        return SamplingState(blend, history, DeepFeatures(self.cache_interval))

    def fused(self, step: int, steps: int) -> tuple[bool, bool]:
        """Whether self- and cross-attention are fused at a step counted from the noisy end."""
        if self.source is None:
            return False, False
        fuses_self, fuses_cross = fused_counts(self.fusion, steps)
        return step < fuses_self, step < fuses_cross

    def recorders(self, branch: int) -> tuple[AttentionRecorder, ...]:
        """The recorder, if any, set to the branch that is conditional in this step."""
        if self.recorder is None:
            return ()
        self.recorder.branch = branch
        return (self.recorder,)

    @property
    def blends(self) -> str:
        """``self``, ``latent`` or ``none``, which it also is without changed words."""
        some = self.source is not None and any(self.source.changed)
        return self.fusion.blend if some else "none"


@torch.no_grad()
def sample(
    backbone: Backbone,
    x: Tensor,
    context: Condition | Tensor,
    levels: Levels,
    view: FrameView,
    how: Sampling,
    shift: ContextShift | None = None,
    start: int | None = None,
    progress: Progress = no_progress,
) -> Tensor:
    """Walk latents down the levels.

    Args:
        backbone: with clip attention installed.
        x: (F, C, h, w) at level ``start``.
        context: the unconditional (or negative) prompt's row and one for each of ``how.weights``.
        levels: S used levels.
        view: one branch.
        how: guidance, fusion, masks.
        shift: b_t of the target prompt, or None.
        start: the level of ``x``; None is S.
        progress: called with (done, total) steps.

    Returns:
        (F, C, h, w), clean.

    Raises:
        NumericsError: NaN or infinity appeared.
    """
    condition, state = Condition.of(context), how.initial_state()
    top = levels.steps if start is None else start
    for step, high in enumerate(range(top, 0, -1)):
        z = torch.randn(x.shape, generator=how.generator).to(x) if how.eta > 0 else None
        x = descend(backbone, x, condition, levels, high, view, how, shift, state, z)
        progress(step + 1, top)
    return x


@torch.no_grad()
def descend(
    backbone: Backbone,
    x: Tensor,
    condition: Condition,
    levels: Levels,
    high: int,
    view: FrameView,
    how: Sampling,
    shift: ContextShift | None,
    state: SamplingState,
    z: Tensor | None,
) -> Tensor:
    """One step of :func:`sample`: latents (F, C, h, w) from level ``high`` to the one below.

    ``z`` is the step's fresh noise, for ``how.eta`` above 0; ``state`` is handed from step to step.
    """
    low = high - 1
    x0 = _predict(_At(backbone, x, levels, high, view, how, state), condition)
    std = eta_std(how.eta, *levels.at(high), *levels.at(low)) if how.eta > 0 else 0.0
    b_high = None if shift is None else shift.at(x0, levels, high)
    b_low = None if shift is None else shift.at(x0, levels, low)
    best = state.history.improve(x0, levels.at(high), levels.at(low))
    x = ddim(x, best, *levels.at(high), *levels.at(low), b_high, b_low, std, z)
    if how.source is not None:
        x = _keep(x, how.source.trajectory[low].to(x), how, state.blend)
    if not bool(torch.isfinite(x).all()):
        t = levels.timestep(high)
        raise NumericsError(f"sampling: NaN or infinity at timestep {t}", "try --dtype float32")
    return x


def _keep(x: Tensor, source: Tensor, how: Sampling, blend: Blend) -> Tensor:
    """Outside the masks the source's own latents (prompt-to-prompt's local blend; a person's mask)."""
    if how.blends == "latent" and blend.steps:
        x = torch.lerp(source, x, F.interpolate(blend.mask().to(x), x.shape[-2:], mode="nearest"))
    if how.mask is not None:
        x = torch.lerp(source, x, how.mask.to(x))
    return x


@dataclass(frozen=True)
class _At:
    """Latents ``x`` at a level, and what predicts their x̂_0; as in :func:`descend`."""

    backbone: Backbone
    x: Tensor
    levels: Levels
    level: int
    view: FrameView
    how: Sampling
    state: SamplingState

    @property
    def step(self) -> int:
        """The number of the sampling step, from 0."""
        return self.levels.steps - self.level

    def predict(self, x: Tensor, condition: Condition, view: FrameView) -> Tensor:
        """The network's x̂_0 of latents (B·F, C, h, w) at this level."""
        t, (a, s) = self.levels.timestep(self.level), self.levels.at(self.level)
        return self.backbone.predict_x0(x, t, condition, a, s, view)


def _predict(at: _At, condition: Condition) -> Tensor:
    """Guided x̂_0 at a level, with the source's branch in the same batch in a fused step."""
    how, step, steps = at.how, at.step, at.levels.steps
    scale = how.guidance if is_guided(step, steps, how.interval) else 1.0
    guided = scale != 1 or how.weights != (1.0,)
    together = guided and not how.one_by_one
    rows = condition if together else condition[1:]
    fuse_self, fuse_cross = how.fused(step, steps)
    source = how.source
    with_source = source is not None and (fuse_self or fuse_cross or how.blends == "latent")
    keep, blocks = at.state.features if not with_source else DeepFeatures(), at.backbone.deep_blocks
    alone = None
    if guided and not together:
        alone = keep.run(blocks, "alone", step, lambda: at.predict(at.x, condition[:1], at.view))
    weight = None
    if source is not None and how.fusion.word_weights_where == "everywhere":
        weight = source.alignment.weight
    if not with_source:
        recorders = how.recorders(len(rows) - 1)
        batched = replace(at.view, branches=len(rows), weight=weight, recorders=recorders)
        each = at.x.repeat(len(rows), 1, 1, 1)
        found = keep.run(blocks, len(rows), step, lambda: at.predict(each, rows, batched))
        return _guided(found.chunk(len(rows)), alone, scale, how.weights)
    assert source is not None
    parts = _predict_with_source(replace(at, view=replace(at.view, weight=weight)), rows, source)
    return _guided(parts, alone, scale, how.weights)


def _predict_with_source(at: _At, rows: Condition, source: Source) -> Sequence[Tensor]:
    """x̂_0 of each row's branch in a step that takes attention from the source.

    The source's branch runs in the same batch, unless its queries and keys are kept.
    """
    how = at.how
    fuse_self, fuse_cross = how.fused(at.step, at.levels.steps)
    kept = None if source.kept is None else source.kept.at(at.level)
    mask = None
    if fuse_self and how.blends == "self":
        mask = _mask_of_step(at, source, kept)
    known = kept if kept is not None and kept.complete else None
    others = [] if known else [source.latent(at.level).to(at.x)]
    target = len(others) + len(rows) - 1
    words: tuple[AttentionRecorder, ...] = ()
    if how.blends == "latent":
        whose = (KEPT_SOURCE if known else 0, target)
        words = _recorders(source, at.backbone.context_length, at.view, how.fusion, whose)
    finest = halvings_at(how.fusion.max_resolution)
    fusion = Fusion(fuse_self, source.alignment if fuse_cross else None, finest, target, mask, known)
    recorders = (*words, *how.recorders(target))
    batched = replace(
        at.view, branches=target + 1, fusion=fusion, recorders=recorders, keep=None if known else kept
    )
    batch = torch.cat([*others, *[at.x] * len(rows)])
    condition = rows if known else Condition.stack([Condition.of(source.context), rows])
    found = at.predict(batch, condition, batched).chunk(target + 1)
    if kept is not None:
        kept.complete = True
    if words:
        at.state.blend.add(words)
    return found


def _guided(parts: Sequence[Tensor], alone: Tensor | None, scale: float, weights: Sequence[float]) -> Tensor:
    """The conditional branches, which are the last; guided by the one before them, or by ``alone``."""
    if scale == 1 and tuple(weights) == (1.0,):
        return parts[-1]
    count = len(weights)
    return guide_by_all(parts[-count - 1] if alone is None else alone, parts[-count:], scale, weights)


def _recorders(
    source: Source, length: int, view: FrameView, fusion: FusionConfig, branches: tuple[int, int]
) -> tuple[AttentionRecorder, ...]:
    """Recorders of the words that changed: the source's in its branch, the target's in its own."""
    both = zip(source.changed, branches, strict=True)
    return tuple(_recorder(words, length, branch, view, fusion) for words, branch in both if words)


def _recorder(
    words: Sequence[Word], length: int, branch: int, view: FrameView, fusion: FusionConfig
) -> AttentionRecorder:
    halvings = halvings_at(fusion.mask_resolution)
    side = view.side_at(halvings)  # pooled and normalised there, as published
    return AttentionRecorder(columns(words, length), branch, side, halvings)


def _mask_of_step(at: _At, source: Source, kept: SourceLayers | None) -> Tensor:
    """FateZero's mask of one step, from the source's cross-attention at that very step.

    The layers that make it come after layers that use it, so the source's branch runs once by itself first:
    exact, at the price of one more branch, instead of a store of every map. ``kept`` saves the other one.
    Where words were only added, the source has nothing to look for and its self-attention serves everywhere.
    """
    words, view, fusion = source.changed[0], at.view, at.how.fusion
    if not words:
        return torch.zeros(view.frames, 1, *view.side)
    recorder = _recorder(words, at.backbone.context_length, 0, view, fusion)
    if kept is not None and kept.complete:
        for layer, q, k in kept.of_masks():
            recorder.add(q, k, view.side_at(recorder.halvings), layer.kernel)
        return word_mask(recorder.mean(), fusion.mask_threshold)
    alone = replace(view, recorders=(recorder,), keep=kept, weight=None)
    at.backbone.raw(source.latent(at.level), at.levels.timestep(at.level), source.context, alone)
    if kept is not None:
        kept.complete = True
    return word_mask(recorder.mean(), fusion.mask_threshold)
