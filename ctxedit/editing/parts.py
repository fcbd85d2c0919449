"""What one clip is edited with: networks, frames, masks, each loaded on first use."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ctxedit.config import Config
from ctxedit.editing.loaded import Kind, LoadedNetworks, T, backbone_key
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.errors import counted, did_you_mean
from ctxedit.media.companions import read_companion
from ctxedit.media.edges import canny
from ctxedit.media.geometry import pad
from ctxedit.media.mask import read_mask
from ctxedit.media.scratch import release, scratch
from ctxedit.metrics.evaluate import make_scorer
from ctxedit.model_names import VOCABULARY
from ctxedit.models.adapter import ContextAdapter, adapter_to_start_from
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import Backbone, builtin_vocabulary, check_addons, open_with_addons, split_words
from ctxedit.models.captioner import Captioner
from ctxedit.models.clip import ClipScorer
from ctxedit.models.control import Control, check_settings, locate_control
from ctxedit.models.control_maps import Detector
from ctxedit.models.device import keep_heap, pick_device, pick_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.temporal import TemporalLayers
from ctxedit.models.upscalers.base import Upscaler
from ctxedit.models.upscalers.checkpoints import upscaler_of
from ctxedit.models.weights import is_half, locate, own_folder, own_part
from ctxedit.patterns import attended_frames
from ctxedit.stages.caption import make_captioner
from ctxedit.stages.edit import latent_mask
from ctxedit.stages.kept_source import KeptSource, keeps_source, kept_bytes
from ctxedit.stages.long import Strip
from ctxedit.stages.prepare import Prepared, prepare
from ctxedit.stages.tune import frames_of_step, step_seed
from ctxedit.windows import Window, plan_windows

#: Frames of a long clip that are encoded or decoded at a time.
_ENCODED = 16


class Parts:
    """What the stages work with; their order is not known here.

    Args:
        request: the clip, its settings, mask and tuning seed.
        reporter: receives messages.
        loaded: networks of the session before, lent to this one; None loads them for this one alone.
    """

    def __init__(self, request: Request, reporter: Reporter, loaded: LoadedNetworks | None = None) -> None:
        self.request, self.reporter = request, reporter
        self._loaded = loaded
        self._stack = ExitStack()
        self._adapter: ContextAdapter | None = None

    @property
    def config(self) -> Config:
        """The settings."""
        return self.request.config

    def close(self, *error: Any) -> None:
        """Take temporal layers and attention off the network again, and give back what was lent.

        Args:
            error: type, value and traceback of the exception that ends the session, if one does: the networks
                are then not used again.
        """
        self._stack.__exit__(*(error or (None, None, None)))

    def forget_loaded(self) -> None:
        """Drop the networks that an earlier session left loaded, where large ones need the room."""
        if self._loaded is not None:
            self._loaded.drop()

    @cached_property
    def device(self) -> torch.device:
        device = pick_device(self.config.device)
        if device.type == "cpu":
            keep_heap()
        return device

    @cached_property
    def backbone(self) -> Backbone:
        dtype = pick_dtype(self.config.dtype, self.device)
        if self._loaded is None:
            backbone = self._load(dtype)
        else:
            key = backbone_key(self.config, self.request.offline, self.device, dtype)
            lent = self._loaded.backbone(key, self.config.tune.trainable_modules, lambda: self._load(dtype))
            backbone = self._stack.enter_context(lent)
        texts = [*self.request.targets, self.config.edit.negative_prompt, self.request.prompt or ""]
        unused = [t for t in backbone.learned_tokens if not any(t in text for text in texts)]
        for token in unused if self.request.targets else ():
            self.reporter.warn(f"{token}, the token of an embedding, is in no prompt, so it has no effect")
        backbone.long_prompts = self.config.edit.long_prompts
        backbone.final_alpha = self.config.invert.final_alpha
        self._stack.enter_context(backbone.attention(self.config.attention))
        return backbone

    def _load(self, dtype: torch.dtype) -> Backbone:
        control = self.config.control
        checkpoint = locate(self.config.model, self.request.offline, is_half(dtype))
        check_settings(control, checkpoint.own is not None)  # before minutes of loading
        if control.kind == "video" and not control.map:
            _ = self._detector  # also before loading
        self.reporter.say(f"loading {checkpoint.name} on {self.device} ({str(dtype).split('.')[-1]})")
        addons = check_addons(self.config, checkpoint, self.request.offline)
        backbone = open_with_addons(self.config, checkpoint, addons, self.device, dtype, self.reporter.say)
        if control.kind != "none":
            folder = locate_control(control, backbone.denoiser, self.request.offline, is_half(dtype))
            backbone.control = Control.load(folder, control.scale, self.device, dtype)
        return backbone

    @cached_property
    def prepared(self) -> Prepared:
        prepared = prepare(
            self.request.clip, self.config.clip, self.backbone.resolution, self.backbone.multiple, self.store
        )
        height, width = prepared.frames.shape[1:3]
        self.reporter.say(
            f"{counted(len(prepared.frames), 'frame')} of {self.request.clip.name} at {width}×{height}"
        )
        for note in prepared.clip.notes:
            self.reporter.warn(note)
        return prepared

    # -- a clip in windows -----------------------------------------------------------------------------------

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The windows that the clip is worked in: one, where it fits."""
        window = self.config.window
        return plan_windows(self.config.clip.frames, window.size, window.overlap)

    @property
    def long(self) -> bool:
        """Whether the clip is worked in several windows; then its frames and latents are on disk."""
        return len(self.windows) > 1

    def store(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An empty array for all frames of the clip; for a long clip on disk, in the folder for runs."""
        run = self.request.run
        return (
            scratch(run.folder if run else self.request.runs, shape, dtype)
            if self.long
            else np.empty(shape, dtype)
        )

    @cached_property
    def strip(self) -> Strip:
        """The windows of a long clip, and what the network gets in each."""
        return Strip(self.windows, lambda window: self.view_of(window.span), self.device, self.store)

    @cached_property
    def stored_latents(self) -> NDArray[np.float32]:
        """Latents (F, C, h, w) of a long clip, on disk."""
        frames, side = self.prepared.frames, self.side
        latents = self.store((len(frames), self.backbone.latent_channels, *side))
        for start in range(0, len(frames), _ENCODED):
            part = pad(frames[start : start + _ENCODED], self.prepared.fit)
            latents[start : start + _ENCODED] = self.backbone.encode(part).float().cpu().numpy()
            release(frames, latents)
        return latents

    def draw(self, step: int) -> tuple[Tensor, FrameView]:
        """Latents and view of the frames that a tuning step sees where it does not see the whole clip."""
        length = frames_of_step(self.config)
        generator = torch.Generator().manual_seed(step_seed(self.request.tuning_seed, -1 - step))
        start = int(torch.randint(0, self.config.clip.frames - length + 1, (), generator=generator))
        span = slice(start, start + length)
        if not self.long:
            return self.latents[span], self.view_of(span)
        part = torch.from_numpy(np.array(self.stored_latents[span]))
        release(self.stored_latents)
        return part.to(self.device), self.view_of(span)

    @cached_property
    def kept_source(self) -> KeptSource | None:
        """What edits of the clip take from the source's branch, where the settings keep it."""
        backbone, config = self.backbone, self.config
        sites, width = backbone.attention_sites(backbone.networks[0]), backbone.dtype.itemsize
        words, frames = backbone.context_length, self.windows[0].stop
        size = kept_bytes(config, sites, self.side, frames, words, width)
        edits, kind = len(self.request.targets), self.device.type
        keeps = keeps_source(config, edits, size, len(self.windows), kind, backbone.dtype)
        return KeptSource(config) if keeps else None

    # -- what the network sees -------------------------------------------------------------------------------

    @cached_property
    def latents(self) -> Tensor:
        """Of the whole clip; of a long one, of its first window."""
        return self.backbone.encode(pad(self.prepared.frames[self.windows[0].span], self.prepared.fit))

    @cached_property
    def side(self) -> tuple[int, int]:
        """(height, width) of the latents."""
        fit, factor = self.prepared.fit, self.backbone.factor
        return fit.padded_height // factor, fit.padded_width // factor

    @cached_property
    def view(self) -> FrameView:
        """Of the whole clip; of a long one, of its first window."""
        return self.view_of(self.windows[0].span)

    def view_of(self, span: slice) -> FrameView:
        """Of some frames of the clip."""
        attention = self.config.attention
        attended = attended_frames(attention, span.stop - span.start)
        control = self.condition(span)
        return FrameView(attended, self.side, control=control, min_channels=attention.min_channels)

    def condition(self, span: slice) -> Tensor | None:
        """What the ControlNet is shown, (F, 3, H, W) in [0, 1] at padded size; None without one."""
        config, fit = self.config.control, self.prepared.fit
        if config.kind == "none":
            return None
        if config.kind == "canny":
            pictures = canny(pad(self.prepared.frames[span], fit), config.low, config.high)
        else:
            pictures = pad(self.control_map[span], fit)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self.device, torch.float32) / 255

    @cached_property
    def _detector(self) -> Detector:
        return Detector(self.config.control.model, self.device, self.request.offline)

    @cached_property
    def control_map(self) -> NDArray[np.uint8]:
        """The map for the ControlNet, brought or computed, RGB uint8 (F, h, w, 3) at working size."""
        clip, where = self.config.clip, self.config.control.map
        if not where:
            frames = self.prepared.frames
            computed, detect = self.store(frames.shape, np.uint8), self._detector
            with self.reporter.task("control map", len(frames), "frame") as progress:
                for number in range(len(frames)):
                    computed[number] = detect(frames[number : number + 1])[0]
                    progress(number + 1, "")
            return computed
        return read_companion(
            where, "control map", clip.frames, clip.start, clip.stride, self.prepared.fit, store=self.store
        )

    def shift(self, prompt: str) -> ContextShift | None:
        """The adapter bound to a prompt; the same adapter for every prompt."""
        config = self.config.adapter
        if not config.enabled:
            return None
        if self._adapter is None:
            width = self.scorer.image_width if config.image == "clip" else 0
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.request.tuning_seed)
                b = self.backbone
                self._adapter = ContextAdapter(config, b.latent_channels, b.context_width, width)
            if self.config.tune.adapter_init == "pretrained":
                file = adapter_to_start_from(self.config)
                self._adapter.load_state_dict(ContextAdapter.load(file).state_dict())
            # In the denoiser's precision on a CPU, where half of a float32 inversion is the adapter's.
            dtype = self.backbone.dtype if self.device.type == "cpu" else torch.float32
            self._adapter.to(self.device, dtype).eval().requires_grad_(False)
        tokens = self._image_tokens if config.image == "clip" else None
        with self.backbone.room_for([prompt]):
            words = self.backbone.embed([prompt])
        return ContextShift(self._adapter, words, self.windows[0].stop, tokens)

    def _image_tokens(self, latents: Tensor) -> Tensor:
        """The clean latents, or the prediction of them, as CLIP sees them decoded."""
        return self.scorer.image_tokens(self.backbone.decode(latents)).to(self.device)

    @cached_property
    def temporal(self) -> TemporalLayers | None:
        """Temporal attention and convolutions, hooked into the UNet, where the settings ask for them."""
        config = self.config.attention
        if not config.temporal and not config.temporal_conv_rank:
            return None
        init = config.temporal_init if config.temporal else "none"
        seed, rank = self.request.tuning_seed, config.temporal_conv_rank
        layers = self.backbone.temporal_layers(seed, init, rank).eval().requires_grad_(False)
        self._stack.callback(layers.remove)
        return layers

    @cached_property
    def upscaler(self) -> Upscaler:
        """The super-resolution model of the settings."""
        dtype = pick_dtype(self.config.dtype, self.device)
        offline, model = self.request.offline, self.config.upscale.model

        def load() -> Upscaler:
            return upscaler_of(self.config, offline, self.device, dtype)

        if own_part(model, self.own, "upscaler") is None:
            return load()
        return self._kept("upscaler", (model, self.own, str(self.device), dtype), load)

    @cached_property
    def scorer(self) -> ClipScorer:
        arguments = (self.config.clip_model, self.own, self.device, self.request.offline)
        return self._kept("scorer", arguments, lambda: make_scorer(*arguments))

    def captioner(self, setting: str, dtype: torch.dtype) -> Captioner:
        """The captioner that a setting names; ctxedit's own stays loaded for later sessions.

        One from elsewhere is large: keeping it would take its memory from every later stage.
        """
        request, own = self.request, self.own
        lavis = request.lavis_python
        found = own_part(setting, own, "captioner")

        def load() -> Captioner:
            return make_captioner(setting, own, self.device, dtype, request.offline, lavis)

        return load() if found is None else self._kept("captioner", found, load)

    def _kept(self, kind: Kind, key: Any, load: Callable[[], T]) -> T:
        """A network that a later session with the same key need not load again."""
        return load() if self._loaded is None else self._loaded.other(kind, key, load)

    @property
    def own(self) -> Path | None:
        """The folder of the models, if they are ctxedit's own."""
        return own_folder(self.config.model)

    def mask(self) -> NDArray[np.float32] | None:
        if self.request.mask is None:
            return None
        clip = self.config.clip
        return read_mask(
            self.request.mask, clip.frames, clip.start, clip.stride, self.prepared.fit, self.store
        )

    def latent_mask(self, pixels: NDArray[np.float32]) -> Tensor:
        """A mask at working size (F, h, w) as latents see it: padded, (F, 1, h/f, w/f)."""
        grey = np.rint(pixels[..., None] * 255).astype(np.uint8).repeat(3, -1)
        padded = pad(grey, self.prepared.fit)[..., 0].astype(np.float32) / 255
        return latent_mask(torch.from_numpy(padded), self.side)


def warn_of_unknown_words(backbone: Backbone, text: str, reporter: Reporter) -> None:
    """Warn of words and symbols that ctxedit's own models do not know, and of a text without any."""
    known = builtin_vocabulary(backbone.path)
    if known is None or not text.strip():
        return
    words = [word for word in split_words(text) if _means_something(word)]
    strange = sorted({word for word in words if word.lower() not in known})
    if strange or not words:
        who, where = "the built-in models", "`ctxedit models ls`"
        if not backbone.builtin:
            who, where = f"the models in {backbone.path}", f"its {VOCABULARY}"
        said = ", ".join(_with_guess(word, known) for word in strange)
        reporter.warn(
            f"{who} do not know {said or 'a text without words'}: "
            f"see {where} for what they know, or name a real checkpoint with --model sd15"
        )


def _means_something(word: str) -> bool:
    """Whether it is a word or a symbol, such as an emoji, rather than punctuation."""
    return word[0].isalnum() or unicodedata.category(word[0]).startswith("S")


def _with_guess(word: str, known: Collection[str]) -> str:
    """A word that is not known, and the known one that may be meant."""
    guess = did_you_mean(word, known).strip()
    return f"{word!r} ({guess})" if guess else repr(word)
