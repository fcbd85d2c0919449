"""FateZero's attention fusion (Qi et al. 2023): maps are stored by the inversion and read by the edit.

ctxedit fuses without maps. This alternative exists only for comparison: every attention map of the
fused steps is computed explicitly and kept, and sampling runs the unconditional and the conditional branch
with the stored maps in place of the latter's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctxedit.config import FusionConfig
from ctxedit.diffusion.ddim import ddim
from ctxedit.diffusion.guidance import guide
from ctxedit.models.alignment import align
from ctxedit.models.attention import FrameView, WordAlignment
from ctxedit.models.backbones.stable_diffusion import StableDiffusion
from ctxedit.models.sites import AttentionSite, halvings_at
from ctxedit.stages.invert import invert
from ctxedit.stages.passes import fused_steps


class MapStore:
    """Attention processors of every layer that keep their maps while ``recording`` and use them afterwards.

    Args:
        backbone: its UNet's processors are replaced; the caller restores them.
        view: frames that each frame attends to.
        alignment: words of the target to words of the source.
        min_halvings: layers at higher resolutions are neither stored nor fused.
        lowest: the least noisy level whose self-attention, and whose cross-attention, is fused.

    Attributes:
        level: the noise level that maps are stored or looked up for.
        recording: whether maps are kept.
    """

    def __init__(
        self,
        backbone: StableDiffusion,
        view: FrameView,
        alignment: WordAlignment,
        min_halvings: int,
        lowest: tuple[int, int],
    ) -> None:
        self.view, self.alignment, self.min_halvings, self.lowest = view, alignment, min_halvings, lowest
        self.level, self.recording = 0, True
        self.maps: dict[tuple[int, str], Tensor] = {}
        for site in backbone.attention_sites(backbone.unet):
            backbone.unet.get_submodule(site.name).set_processor(self._processor(site))

    @property
    def bytes(self) -> int:
        """Bytes of all stored maps."""
        return sum(m.numel() * m.element_size() for m in self.maps.values())

    def _processor(self, site: AttentionSite) -> Callable[..., Tensor]:
        name, cross = site.name, site.kind == "cross"

        def call(
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,
            temb: Tensor | None = None,
        ) -> Tensor:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                layer(y).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for layer, y in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
            )
            if not cross:
                k, v = (self._across(y, site.channels) for y in (k, v))
            stores = self.level >= self.lowest[cross] and site.halvings >= self.min_halvings
            if not stores:  # one image at a time, so that these maps do not determine the peak memory
                parts = [_maps(q[i : i + 1], k[i : i + 1], attn.scale) @ v[i : i + 1] for i in range(len(q))]
                return attn.to_out[0](torch.cat(parts).transpose(1, 2).flatten(2))
            maps = _maps(q, k, attn.scale)
            out = maps @ v
            if self.recording:
                self.maps[self.level, name] = maps
            else:
                frames = self.view.frames
                stored = self.maps[self.level, name]
                out[-frames:] = self._fused(stored, maps[-frames:], v[-frames:], cross)
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

        return call

    def _across(self, x: Tensor, channels: int) -> Tensor:
        """Keys or values of the frames that each frame attends to, concatenated to the same length for each.

        If a frame attends to fewer frames, its keys are repeated: repeating all keys does not change a
        softmax.
        """
        branches, attended = x.unflatten(0, (-1, self.view.frames)), self.view.attended_at(channels)
        longest = max(len(s) for s in attended)
        index = torch.tensor([list(s) + [s[-1]] * (longest - len(s)) for s in attended])
        return branches[:, index.to(x.device)].transpose(2, 3).flatten(3, 4).flatten(0, 1)

    def _fused(self, stored: Tensor, own: Tensor, v: Tensor, cross: bool) -> Tensor:
        if not cross:
            return stored @ v
        how = self.alignment
        value = how.weight.to(v)[:, None] * v
        share = how.share.to(v)[:, None]
        return stored @ (how.mapper.to(v) @ (share * value)) + own @ ((1 - share) * value)


def _maps(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Attention maps (B, heads, N, M) of queries (B, heads, N, D) and keys (B, heads, M, D)."""
    return (q @ k.transpose(-1, -2) * scale).softmax(-1)


@torch.no_grad()
def edit_with_store(
    backbone: StableDiffusion,
    latents: Tensor,
    prompts: tuple[str, str],
    steps: int,
    view: FrameView,
    fusion: FusionConfig,
    guidance: float,
    inverted: Callable[[MapStore], None] = lambda store: None,
) -> Tensor:
    """Invert, storing the maps of the fused steps; sample with them.

    Args:
        backbone: with its own attention processors, which are replaced.
        latents: (F, C, h, w), clean.
        prompts: the source prompt and the target prompt.
        steps: of inversion and sampling.
        view: one branch.
        fusion: shares, finest layer, words.
        guidance: scale.
        inverted: called with the store between inversion and sampling.

    Returns:
        (F, C, h, w), the edited clip's latents.
    """
    levels = backbone.levels(steps)
    words = [backbone.words(text) for text in prompts]
    alignment = align(words[0], words[1], backbone.context_length, fusion.cross, fusion.word_weights)
    lowest = [
        steps - fused_steps(steps, share) + 1
        for share in (fusion.self_replace_steps, fusion.cross_replace_steps)
    ]
    store = MapStore(backbone, view, alignment, halvings_at(fusion.max_resolution), (lowest[0], lowest[1]))

    def told(done: int, _: int) -> None:
        store.level = done + 1

    told(0, 0)
    trajectory = invert(backbone, latents, backbone.embed([prompts[0]]), levels, view, progress=told)
    store.recording = False
    inverted(store)
    x, context = trajectory[-1], backbone.embed(["", prompts[1]])
    guided = FrameView(view.attended, view.side, 2)
    for high in range(steps, 0, -1):
        store.level = high
        a, s = levels.at(high)
        parts = backbone.predict_x0(x.repeat(2, 1, 1, 1), levels.timestep(high), context, a, s, guided)
        uncond, cond = parts.chunk(2)
        x = ddim(x, guide(uncond, cond, guidance), a, s, *levels.at(high - 1))
    return x
