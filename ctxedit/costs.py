"""What each stage of one session takes: passes of the network, bytes of memory, bytes of disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ctxedit import footprint
from ctxedit.config import Config
from ctxedit.media.geometry import Fit
from ctxedit.models.adapter import adapter_parameters
from ctxedit.models.clip import checkpoint_folder
from ctxedit.models.sizes import Sizes, Weight, weigh
from ctxedit.models.weights import own_part
from ctxedit.stages.caption import BLIP2, asks_clip
from ctxedit.stages.evaluate import CLIP
from ctxedit.stages.sample import fused_steps
from ctxedit.stages.tune import ADAPTER, CONTROL, TEMPORAL

_NOTHING = Weight()


class Costs:
    """Passes, bytes of memory and bytes of disk of each stage of one session."""

    def __init__(
        self,
        config: Config,
        offline: bool,
        own: Path | None,
        body: Sizes,
        fit: Fit,
        dtype: torch.dtype,
        control: Weight = _NOTHING,
    ) -> None:
        self.config, self.offline = config, offline
        self.body, self.own, self.control = body, own, control
        self.width = dtype.itemsize
        self.frames = self.config.clip.frames
        self.side = (fit.padded_height // body.factor, fit.padded_width // body.factor)
        attention = self.config.attention
        self.window = {"causal": attention.window, "sparse-causal": 2}.get(attention.frames, 1)

    def evaluations(self, stage: str) -> int:
        """Passes of the network over all frames; guidance and the source's lane are passes of their own."""
        config = self.config
        if stage == "tune":
            return config.tune.steps
        if stage == "invert":
            steps = config.invert.steps
            return 0 if config.edit.start == "noise" else steps + config.invert.refinements * (steps - 1)
        return edit_evaluations(config) if stage == "edit" else 0

    def peak(self, stage: str, reused: bool = False) -> int:
        """Bytes at the stage's peak, all that is loaded by then included."""
        body, width = self.body, self.width
        weights = (body.parameters + self.control.parameters) * width + self._adapter * 4
        chunk = footprint.autoencoder_bytes(body, self.side, min(4, self.frames), width)
        if stage == "caption":
            if reused:
                return weights
            asked = (self.config, self.own, self.offline)
            seen = clip_weight(*asked).parameters * 4 if asks_clip(self.config, self.own is not None) else 0
            return weights + captioner_weight(*asked, width == 2).parameters * width + seen
        if stage == "tune" and not reused and self.config.tune.steps:
            # Float32 masters of the whole UNet; gradient and two moments of what is trained.
            networks = body.unet.parameters + self.control.parameters
            masters = networks * (4 - width) if width < 4 else 0
            kept = footprint.backward_bytes(
                body, self.side, self.frames, self.window, width, self.config.tune.checkpointing
            )
            if self.control.parameters:  # the way down a second time
                kept = kept * 3 // 2
            return weights + masters + self._trained * 12 + kept + self._shifting(True)
        if stage == "evaluate":
            return weights + clip_weight(self.config, self.own, self.offline).parameters * 4
        lanes = {"edit": 3 if self._fuses else 2, "invert": 1}.get(stage, 1)
        passing = footprint.forward_bytes(body, self.side, self.frames * lanes, self.window, width)
        if self.control.parameters:  # what it hands over waits beside the denoiser's own
            passing += footprint.skip_bytes(body, self.side, self.frames * lanes, width)
        return weights + max(passing, self._shifting(False), chunk)

    def disk(self, stages: Sequence[str]) -> int:
        """Bytes that the stages leave behind."""
        config, (h, w) = self.config, self.side
        latents = self.frames * self.body.latent_channels * h * w * 4
        total = 1 << 20
        if "tune" in stages and config.tune.steps:
            total += 4 * 4 * self._trained  # parameters and two moments while tuning, the result beside them
        if "invert" in stages and config.edit.start != "noise":
            total += (config.invert.steps + 1) * latents
        pixels = self.frames * h * w * self.body.factor**2 * 3
        return total + 3 * pixels * sum(s.startswith("edit ") for s in stages)

    def _shifting(self, gradient: bool) -> int:
        adapter = self.config.adapter
        return footprint.adapter_bytes(adapter, self.side, self.frames, gradient) if adapter.enabled else 0

    @property
    def _fuses(self) -> bool:
        fusion = self.config.fusion
        inverted = self.config.edit.start == "inversion"
        return inverted and bool(fusion.self_share or fusion.cross_share or fusion.blend == "latent")

    @property
    def _adapter(self) -> int:
        adapter, body = self.config.adapter, self.body
        if not adapter.enabled:
            return 0
        image = 768 if adapter.image == "clip" else 0
        return adapter_parameters(adapter, body.latent_channels, body.context_width, image)

    @property
    def _trained(self) -> int:
        """Parameters that tuning moves, about: queries are a twentieth of the UNet."""
        names = [n for n in self.config.tune.train if n not in (ADAPTER, TEMPORAL)]
        beside = [n for n in names if n.startswith(CONTROL)]
        names = [n for n in names if n not in beside]
        moved = self._adapter if ADAPTER in self.config.tune.train else 0
        temporal = self.body.unet.parameters // 10 if TEMPORAL in self.config.tune.train else 0
        moved += min(1, len(beside)) * self.control.parameters // 20
        return moved + temporal + min(1, len(names)) * self.body.unet.parameters // 20


def edit_evaluations(config: Config) -> int:
    """Passes of one edit, lanes summed over steps: guidance 2, the source's 1, FateZero's mask 1 more."""
    edit, fusion = config.edit, config.fusion
    lanes = 1 if edit.guidance == 1 else 2
    if edit.start == "noise":
        return lanes * max(1, round(edit.steps * edit.strength))
    own, cross = (fused_steps(edit.steps, share) for share in (fusion.self_share, fusion.cross_share))
    beside = edit.steps if fusion.blend == "latent" else max(own, cross)
    return lanes * edit.steps + beside + (own if fusion.blend == "self" else 0)


def captioner_weight(config: Config, own: Path | None, offline: bool, half: bool = False) -> Weight:
    """The captioner's size; fetched if it has to be. LAVIS runs in a process of its own."""
    if config.captioner == "lavis":
        return Weight()
    return _weigh(config.captioner, own, "captioner", BLIP2, offline, half)


def clip_weight(config: Config, own: Path | None, offline: bool) -> Weight:
    """The scoring CLIP's size; fetched if it has to be."""
    return _weigh(config.clip_model, own, "clip", CLIP, offline)


def _weigh(name: str, own: Path | None, part: str, default: str, offline: bool, half: bool = False) -> Weight:
    if found := own_part(name, own, part):
        return weigh(found[0])
    return weigh(checkpoint_folder(default if name == "auto" else name, offline, half))
