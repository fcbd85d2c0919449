"""Attention across frames, and fusion: one attention processor, without state and without stored maps.

A processor takes everything it needs from the :class:`FrameView` in effect around the network's forward pass:
which frames, which branches and, in a fused step, its :class:`Fusion`. :meth:`FrameView.in_effect` sets it,
in a context variable, because networks differ in which keyword arguments they pass to their attention.

Branches: the batch is ``branches × frames``. A plain call has one branch; guidance has two (unconditional,
conditional); a fused step puts the source's branch before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ctxedit.errors import ConfigError
from ctxedit.models.across_frames import Kernel, across_frames
from ctxedit.models.anchors import Anchors
from ctxedit.models.sites import AttentionSite
from ctxedit.models.source_layers import SourceLayers

#: The branch of a recorder that reads the source's queries and keys which a fusion has kept.
KEPT_SOURCE = -1


@dataclass(frozen=True)
class WordAlignment:
    """How target words take the source's maps (prompt-to-prompt, Hertz et al. 2022).

    Attributes:
        mapper: (source tokens, target tokens); ``W`` of a replacement, or ``G`` of a refinement.
        share: (target tokens,) in [0, 1]: ``a``; 0 leaves a target word its own map.
        weight: (target tokens,): ``e``, the equaliser.
    """

    mapper: Tensor
    share: Tensor
    weight: Tensor


@dataclass
class AttentionRecorder:
    """Collects cross-attention of chosen words over layers, as sums of maps brought to one size.

    Attributes:
        columns: (tokens, words) one-hot sums of each word's tokens.
        branch: whose attention; :data:`KEPT_SOURCE` is the source's that the fusion has kept.
        side: (h, w) of the maps kept; layers of another size are resized to it, bilinearly.
        halvings: only layers at this resolution, as :class:`AttentionSite` counts it.
    """

    columns: Tensor
    branch: int
    side: tuple[int, int]
    halvings: int
    total: Tensor | None = None
    layers: int = 0

    def add(self, q: Tensor, k: Tensor, side: tuple[int, int], kernel: Kernel) -> None:
        """Add one layer's map: ``A(q, k, one-hot columns)``, mean over heads. q, k of one branch."""
        columns = self.columns.to(q).expand(*k.shape[:2], -1, -1)
        heat = kernel(q, k, _pad(columns, q.shape[-1]))[..., : columns.shape[-1]].float().mean(1)
        heat = heat.transpose(1, 2).reshape(heat.shape[0], -1, *side)
        if side != self.side:
            heat = F.interpolate(heat, self.side, mode="bilinear", align_corners=False)
        self.total = heat if self.total is None else self.total + heat
        self.layers += 1

    def mean(self) -> Tensor:
        """(frames, words, h, w): mean over layers and heads."""
        if self.total is None:
            raise ConfigError("no attention layer has a resolution that the recorder accepts")
        return self.total / self.layers


def _pad(v: Tensor, dim: int) -> Tensor:
    """Kernels want values as wide as keys: fill a narrow one with zeros."""
    return F.pad(v, (0, dim - v.shape[-1])) if v.shape[-1] < dim else v


@dataclass(frozen=True)
class Fusion:
    """What one fused step mixes of branch 0 (source) into branch ``target``.

    Attributes:
        self_attention: take the source's self-attention.
        cross: take the source's cross-attention by this alignment, or None.
        mask: (frames, 1, h, w) in {0, 1}, of any size: where self-attention stays the target's own; None is
            nowhere. Layers of another size take it by nearest neighbour.
        min_halvings: only layers at this resolution or a lower one, as :class:`AttentionSite` counts it.
        kept: the source's queries and keys, of a batch without the source's branch; None takes branch 0's.
    """

    self_attention: bool
    cross: WordAlignment | None
    min_halvings: int
    target: int = 2
    mask: Tensor | None = None
    kept: SourceLayers | None = None


@dataclass(frozen=True)
class FrameView:
    """One call's batch: ``branches × frames``, and (height, width) of the latent.

    ``control`` is what a ControlNet is shown, (frames, 3, H, W) in [0, 1], the same for every branch.
    In layers of fewer than ``min_channels`` channels each frame attends to itself alone. ``anchors`` are
    frames outside of this window of a long clip that all of its frames attend to as well. ``keep`` is filled
    with queries and keys of the first branch.
    """

    attended: tuple[tuple[int, ...], ...]
    side: tuple[int, int]
    branches: int = 1
    fusion: Fusion | None = None
    recorders: tuple[AttentionRecorder, ...] = ()
    weight: Tensor | None = None
    control: Tensor | None = None
    min_channels: int = 0
    anchors: Anchors | None = None
    keep: SourceLayers | None = None

    @property
    def frames(self) -> int:
        return len(self.attended)

    def attended_at(self, channels: int) -> tuple[tuple[int, ...], ...]:
        """For each frame the frames that it attends to in a layer of that many channels."""
        return self.attended if channels >= self.min_channels else tuple((i,) for i in range(self.frames))

    @contextmanager
    def in_effect(self) -> Iterator[None]:
        """Every attention layer called in the block works by this view."""
        token = _VIEW.set(self)
        try:
            yield
        finally:
            _VIEW.reset(token)

    def side_at(self, halvings: int) -> tuple[int, int]:
        """(height, width) of the layers where the latent has been halved so often, rounding up."""
        height, width = self.side
        return -(-height // 2**halvings), -(-width // 2**halvings)


_VIEW: ContextVar[FrameView | None] = ContextVar("view", default=None)


def current_view() -> FrameView:
    """The view in effect; raises ConfigError outside of one."""
    view = _VIEW.get()
    if view is None:
        raise ConfigError("this network's attention is set up for video: call it through the backbone")
    return view


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused attention; in bfloat16 on a CPU :func:`explicit`, two to three times as fast there."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        kept = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        if not (kept and _map_elements(q, k) > _MOST_KEPT):
            return explicit(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


#: Elements of attention maps that :func:`explicit` computes at once (32 MiB in bfloat16).
_AT_ONCE = 1 << 24
#: Elements that a layer may keep for its gradient; above it the fused kernel, which keeps none, is used.
_MOST_KEPT = 1 << 25


def _map_elements(q: Tensor, k: Tensor) -> int:
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two batched matrix products and a softmax, for a slice of batch and queries at once.

    torch's fused kernel for CPUs converts between bfloat16 and float32 block by block; the matrix products
    use the processor's bfloat16 instructions throughout.

    Args:
        q, k, v: (B, heads, tokens, dim).
    """
    each = q.shape[1] * k.shape[2]  # elements of one query's maps, all heads
    tokens = max(1, min(q.shape[2], _AT_ONCE // each))
    rows = max(1, _AT_ONCE // (each * tokens))
    if rows >= q.shape[0] and tokens >= q.shape[2]:
        return _explicit(q, k, v)
    parts = []
    for start in range(0, q.shape[0], rows):
        at = slice(start, start + rows)
        parts.append(torch.cat([_explicit(part, k[at], v[at]) for part in q[at].split(tokens, 2)], 2))
    return torch.cat(parts)


def _explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, tokens, dim = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    nothing = q.new_empty(1, 1, 1).expand(len(q), tokens, k.shape[1])  # beta = 0: not read
    scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=dim**-0.5)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (batch, heads))


def xformers_kernel() -> Kernel:
    """xformers' memory-efficient attention; raises ConfigError where it is not installed."""
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ConfigError(
            "xformers is not installed", "pip install 'ctxedit[xformers]', or leave it out"
        ) from error

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return memory_efficient_attention(q, k, v).transpose(1, 2)

    return kernel


def make_kernel(backend: str) -> Kernel:
    """The kernel by its setting: ``sdpa`` or ``xformers``."""
    return xformers_kernel() if backend == "xformers" else sdpa


def fuse_cross(
    source: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, how: WordAlignment, kernel: Kernel
) -> Tensor:
    """The target's cross-attention output with the maps of the source's queries and keys.

    ``A(q_s, k_s, G·(a ⊙ e ⊙ v_t)) + A(q_t, k_t, (1 − a) ⊙ e ⊙ v_t)``; with ``a = 1`` it is the replacement.
    """
    value = v * how.weight.to(v)[:, None]
    share = how.share.to(v)[:, None]
    out = kernel(*source, how.mapper.to(v) @ (share * value))
    if bool((how.share < 1).any()):
        out = out + kernel(q, k, (1 - share) * value)
    return out


class FrameAttention:
    """A diffusers attention processor for folded frames, at one site of a network. Holds settings only."""

    def __init__(self, kernel: Kernel, site: AttentionSite) -> None:
        self.kernel, self.site = kernel, site

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(branches·frames, tokens, channels) to the same."""
        view = current_view()
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross and encoder_hidden_states is not None:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        out = self._cross(q, k, v, view) if self.site.kind == "cross" else self._self(q, k, v, view)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return attn.to_out[1](out)

    def _cross(self, q: Tensor, k: Tensor, v: Tensor, view: FrameView) -> Tensor:
        n, halvings, fusion = view.frames, self.site.halvings, view.fusion
        if view.keep is not None:
            view.keep.add(self, q, k, n)
        for recorder in view.recorders:
            if recorder.halvings == halvings:
                branch = slice(recorder.branch * n, (recorder.branch + 1) * n)
                pair = q[branch], k[branch]
                if recorder.branch == KEPT_SOURCE:
                    assert fusion is not None and fusion.kept is not None
                    pair = fusion.kept.of(self)
                recorder.add(*pair, view.side_at(halvings), self.kernel)
        fused = fusion is not None and fusion.cross is not None and halvings >= fusion.min_halvings
        if not fused:
            if view.weight is not None:
                # The equaliser, asked for everywhere, acts on the last branch (conditional).
                last = slice(v.shape[0] - n, None)
                v = torch.cat([v[: v.shape[0] - n], v[last] * view.weight.to(v)[:, None]])
            return self.kernel(q, k, v)
        assert fusion is not None and fusion.cross is not None
        target = slice(fusion.target * n, (fusion.target + 1) * n)
        source = (q[:n], k[:n]) if fusion.kept is None else fusion.kept.of(self)
        out = fuse_cross(source, q[target], k[target], v[target], fusion.cross, self.kernel)
        if not target.start:
            return out
        own = self.kernel(q[: target.start], k[: target.start], v[: target.start])
        return torch.cat([own, out])

    def _self(self, q: Tensor, k: Tensor, v: Tensor, view: FrameView) -> Tensor:
        n, fusion = view.frames, view.fusion
        attended = view.attended_at(self.site.channels)
        branches = q.shape[0] // n
        if view.keep is not None:
            view.keep.add(self, q, k, n)
        if view.anchors is not None:
            k, v, attended = view.anchors.extend(self, k, v, attended)
        if fusion is None or not fusion.self_attention or self.site.halvings < fusion.min_halvings:
            return across_frames(q, k, v, attended, self.kernel)
        source, target, rest = _branch_slices(n, fusion.target)
        source_k, target_k, rest_k = _branch_slices(k.shape[0] // branches, fusion.target)
        q_s, k_s = (q[source], k[source_k]) if fusion.kept is None else fusion.kept.of(self)
        fused = across_frames(q_s, k_s, v[target_k], attended, self.kernel)
        if fusion.mask is not None:
            own = across_frames(q[target], k[target_k], v[target_k], attended, self.kernel)
            mask = F.interpolate(fusion.mask.to(q), view.side_at(self.site.halvings), mode="nearest")
            mask = mask.flatten(2).transpose(1, 2)[:, None]
            fused = mask * own + (1 - mask) * fused
        if not fusion.target:
            return fused
        return torch.cat([across_frames(q[rest], k[rest_k], v[rest_k], attended, self.kernel), fused])


def _branch_slices(frames: int, target: int) -> tuple[slice, slice, slice]:
    """Where a batch of branches of so many frames has the source, the target, and all before the target."""
    return slice(0, frames), slice(target * frames, (target + 1) * frames), slice(0, target * frames)


@contextmanager
def frame_attention(net: nn.Module, sites: Sequence[AttentionSite], backend: str = "sdpa") -> Iterator[None]:
    """Install :class:`FrameAttention` in a network's self- and cross-attention; leaving takes it out again.

    Args:
        net: the network; its layers at ``sites`` are diffusers' ``Attention``.
        sites: its attention layers; temporal ones keep their processors.
        backend: ``sdpa`` or ``xformers``.

    Raises:
        ConfigError: the network has no such layer, or the backend is missing.
    """
    taken = [site for site in sites if site.kind != "temporal"]
    layers = [(site, cast(Attention, net.get_submodule(site.name))) for site in taken]
    if not layers:
        raise ConfigError("the network has no attention layers")
    kernel = make_kernel(backend)
    before = [layer.processor for _, layer in layers]
    for site, layer in layers:
        layer.set_processor(FrameAttention(kernel, site))
    try:
        yield
    finally:
        for (_, layer), processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
