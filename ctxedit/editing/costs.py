"""Estimates of what each stage takes: bytes of memory and of disk."""

from __future__ import annotations

from pathlib import Path

import torch

from ctxedit import footprint
from ctxedit.config import Config
from ctxedit.media.geometry import Fit
from ctxedit.metrics.evaluate import CLIP
from ctxedit.models.adapter import adapter_parameters
from ctxedit.models.clip import checkpoint_folder
from ctxedit.models.device import storage_dtype
from ctxedit.models.sizes import AT_ONCE, Sizes, Weight, folder_weight
from ctxedit.models.temporal import convolution_rank
from ctxedit.models.upscalers.base import CHUNK, SCALE, sampling_of
from ctxedit.models.upscalers.checkpoints import Found, sizes_of
from ctxedit.models.weights import own_part
from ctxedit.patterns import attended_frames
from ctxedit.stages.caption import BLIP2, asks_clip
from ctxedit.stages.kept_source import keeps_source, kept_bytes
from ctxedit.stages.tune import ADAPTER, CONTROL, TEMPORAL, TEMPORAL_CONV, frames_of_step
from ctxedit.windows import plan_windows

_NOTHING = Weight()


class Costs:
    """Bytes of memory and disk of one request's stages; the table of stages names the one for each."""

    def __init__(
        self,
        config: Config,
        offline: bool,
        own: Path | None,
        body: Sizes,
        fit: Fit,
        dtype: torch.dtype,
        control: Weight = _NOTHING,
        upscaler: Found | None = None,
        device: str = "cpu",
        edits: int = 0,
    ) -> None:
        self.config, self.offline = config, offline
        self.body, self.own, self.control = body, own, control
        self.width = dtype.itemsize
        #: Of everything but the denoiser.
        self.stored = storage_dtype(dtype, torch.device(device)).itemsize
        #: What waits in main memory counts where that is the device's.
        self.device, self.apart = device, device != "cpu" and config.offload
        window = self.config.window
        self.all_frames = self.config.clip.frames
        #: Of one window: the frames in memory at a time.
        self._windows = plan_windows(self.all_frames, window.size, window.overlap)
        self.frames = self._windows[0].stop
        self.long = self.frames < self.all_frames
        self.tuned = frames_of_step(config)
        self.side = (fit.padded_height // body.factor, fit.padded_width // body.factor)
        self.upscaler, self.working = upscaler, (fit.height, fit.width)
        self.window = max(map(len, attended_frames(self.config.attention, self.frames)))
        kept = kept_bytes(config, body.sites, self.side, self.frames, body.context_length, self.width)
        #: Of what edits take from the source's branch; 0 where it is not kept.
        self.kept = kept if keeps_source(config, edits, kept, len(self._windows), device, dtype) else 0

    def captioning(self, reused: bool) -> int:
        """Bytes at the caption's peak. ctxedit's own models may stay loaded meanwhile, others do not."""
        if reused:
            return self._weights
        choice = (self.config, self.own, self.offline)
        seen = clip_weight(*choice).parameters * 4 if asks_clip(self.config, self.own is not None) else 0
        captioner = captioner_weight(*choice, half=self.width == 2)
        if own_part(self.config.captioner, self.own, "captioner"):
            return self._weights + footprint.captioner_bytes(captioner.parameters, 4) + seen
        return footprint.captioner_bytes(captioner.parameters, self.width) + seen

    def tuning(self, reused: bool) -> int:
        """Bytes at the tuning's peak: float32 masters, gradient and two moments of what is trained."""
        if reused or not self.config.tune.steps:
            return self.inverting(reused)
        body, width = self.body, self.width
        masters = self._trained * (4 - width)
        kept = footprint.backward_bytes(
            body, self.side, self.tuned, self.window, width, self.config.tune.gradient_checkpointing
        )
        if self.control.parameters:  # the ControlNet repeats the encoder half
            kept = kept * 3 // 2
        working = masters + self._trained * 12 + kept + self._shifting(self.tuned, True)
        return self._network + max(working, self._encoding)

    def inverting(self, reused: bool) -> int:
        """Bytes at the inversion's peak, or where the clip is encoded for it."""
        return self._network + self.kept + max(self._passing(1), self._encoding)

    def editing(self, reused: bool) -> int:
        """Bytes at the sampling's peak: guidance's two branches, and the source's in a fused step."""
        branches = 1 if self.config.low_memory or self.config.edit.guidance == 1 else 2
        passing = self._passing(branches + self._fuses) + self._features
        return self._network + self.kept + max(passing, self._decoding)

    def writing(self, reused: bool) -> int:
        """Bytes while an edit's files are written: the networks, and what is kept for the next edit, wait."""
        return self._weights + self.kept

    def upscaling(self, reused: bool) -> int:
        """Bytes at the peak of super-resolution of one chunk, the denoiser still loaded; 0 without it."""
        if self.upscaler is None:
            return 0
        branches = sampling_of(self.config.upscale, self.upscaler.defaults).branches
        sizes = sizes_of(self.upscaler, self.width == 2)
        return (
            self._weights
            + self.kept
            + footprint.upscaler_bytes(
                sizes, self.working, min(self.all_frames, CHUNK), CHUNK, branches, self.width
            )
        )

    def upscaling_disk(self) -> int:
        """Bytes of the frames and videos at the upscaled size."""
        if self.upscaler is None:
            return 0
        return 3 * self.all_frames * self.working[0] * self.working[1] * SCALE**2 * 3

    def evaluating(self, reused: bool) -> int:
        """Bytes while an edit is scored; what is kept for the next edit waits."""
        return self._weights + self.kept + clip_weight(self.config, self.own, self.offline).parameters * 4

    def tuning_disk(self) -> int:
        """Bytes that tuning writes: the saved state (parameters and two moments) and the result."""
        return 4 * 4 * self._trained if self.config.tune.steps else 0

    def inverting_disk(self) -> int:
        """Bytes of the inverted trajectory."""
        if self.config.edit.start == "noise":
            return 0
        return (self.config.invert.steps + 1) * self._latents

    def editing_disk(self) -> int:
        """Bytes of an edit's frames and videos."""
        h, w = self.side
        frames = self.all_frames * h * w * self.body.factor**2 * 3
        # A clip in windows has frames and latents, before and after a step, on disk while it is worked.
        return 4 * frames + 3 * self._latents if self.long else 3 * frames

    @property
    def _latents(self) -> int:
        """Bytes of the clip's latents at one level."""
        h, w = self.side
        return self.all_frames * self.body.latent_channels * h * w * 4

    @property
    def _network(self) -> int:
        """Bytes of weights on the device while the denoiser runs."""
        waiting = self.body.vae.parameters + self.body.text_encoder.parameters if self.apart else 0
        return self._weights - waiting * self.stored

    @property
    def _weights(self) -> int:
        body = self.body
        denoiser = body.unet.parameters + self.control.parameters
        others = body.vae.parameters + body.text_encoder.parameters
        adapter = self._adapter * self._adapter_width
        return denoiser * self.width + others * self.stored + adapter

    @property
    def _adapter_width(self) -> int:
        """Bytes of the adapter's numbers: on a CPU it is in the denoiser's precision."""
        return self.width if self.device == "cpu" else 4

    def _passing(self, branches: int) -> int:
        """Bytes of one pass of the denoiser, without the weights."""
        images = self.frames * branches
        passing = footprint.forward_bytes(self.body, self.side, images, self.window, self.width)
        if self.control.parameters:  # its outputs are kept along with the denoiser's own activations
            passing += footprint.skip_bytes(self.body, self.side, images, self.width)
        if self.apart:
            passing = max(passing, self.body.text_encoder.parameters * self.stored)
        return max(passing, self._shifting(self.frames, False))

    @property
    def _features(self) -> int:
        """Bytes of deep features kept for the next steps: of both branches, and of one run alone."""
        if self.config.edit.cache_interval == 1:
            return 0
        (h, w), wide = self.side, self.body.channels[1]
        return 3 * self.frames * wide * h * w * self.width * len(self._windows)

    @property
    def _at_once(self) -> int:
        """Frames that the autoencoder takes at a time."""
        return min(1 if self.config.low_memory else AT_ONCE, self.frames)

    @property
    def _visiting(self) -> int:
        """Bytes of an autoencoder that waits in main memory otherwise."""
        return self.body.vae.parameters * self.stored if self.apart else 0

    @property
    def _encoding(self) -> int:
        found = footprint.encoding_bytes(self.body, self.side, self._at_once, self.stored)
        return found + self._visiting

    @property
    def _decoding(self) -> int:
        heap = self.device == "cpu"
        found = footprint.decoding_bytes(self.body, self.side, self._at_once, self.stored, heap)
        return found + self._visiting

    def _shifting(self, frames: int, gradient: bool) -> int:
        adapter = self.config.adapter
        if not adapter.enabled:
            return 0
        return footprint.adapter_bytes(adapter, self.side, frames, gradient, self._adapter_width)

    @property
    def _fuses(self) -> bool:
        fusion = self.config.fusion
        inverted = self.config.edit.start == "inversion"
        return inverted and bool(
            fusion.self_replace_steps or fusion.cross_replace_steps or fusion.blend == "latent"
        )

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
        names = [n for n in self.config.tune.trainable_modules if n not in (ADAPTER, TEMPORAL, TEMPORAL_CONV)]
        in_control = [n for n in names if n.startswith(CONTROL)]
        names = [n for n in names if n not in in_control]
        moved = self._adapter if ADAPTER in self.config.tune.trainable_modules else 0
        temporal = self.body.unet.parameters // 10 if TEMPORAL in self.config.tune.trainable_modules else 0
        if TEMPORAL_CONV in self.config.tune.trainable_modules:
            moved += convolution_parameters(self.body, self.config.attention.temporal_conv_rank)
        moved += min(1, len(in_control)) * self.control.parameters // 20
        return moved + temporal + min(1, len(names)) * self.body.unet.parameters // 20


def convolution_parameters(body: Sizes, rank: int) -> int:
    """Parameters of the temporal convolutions behind each spatial one of the denoiser."""
    first, last = body.channels[0], body.channels[-1]
    widths = [c for c in body.channels for _ in range(2 * (2 * body.layers + 1))]  # residual blocks
    widths += [last] * 4  # those of the middle
    widths += [*body.channels[:-1], *body.channels[1:]]  # down and up between the levels
    widths += [first, body.latent_channels]  # in and out
    return sum(6 * c * convolution_rank(c, rank) for c in widths)


def captioner_weight(config: Config, own: Path | None, offline: bool, half: bool = False) -> Weight:
    """The captioner's size; fetched if it has to be. LAVIS runs in a process of its own."""
    if config.captioner == "lavis":
        return Weight()
    return _network_weight(config.captioner, own, "captioner", BLIP2, offline, half)


def clip_weight(config: Config, own: Path | None, offline: bool) -> Weight:
    """The scoring CLIP's size; fetched if it has to be."""
    return _network_weight(config.clip_model, own, "clip", CLIP, offline)


def _network_weight(
    name: str, own: Path | None, part: str, default: str, offline: bool, half: bool = False
) -> Weight:
    if found := own_part(name, own, part):
        return folder_weight(found[0])
    return folder_weight(checkpoint_folder(default if name == "auto" else name, offline, half))
