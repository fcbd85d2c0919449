"""What each stage's result depends on, as hashes. Nothing is loaded, captioned or written to find them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ctxedit.config import Config
from ctxedit.editing.request import Request
from ctxedit.model_names import split_scale
from ctxedit.models import embedding, lora
from ctxedit.models.addons import locate_file
from ctxedit.models.device import settled_dtype
from ctxedit.models.weights import (
    folder_identity,
    identity,
    own_folder,
    part_identity,
    pretrained_adapter,
)
from ctxedit.runs import Run, fingerprint, key_of, slug
from ctxedit.stages import caption as captioning


class Keys:
    """The keys of one request's stages; files are hashed once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._prints: dict[Path, str] = {}

    def identity(self, prompt: str | None) -> str:
        """What a run folder is found by: the inputs of its tuning.

        The prompt is the text alone, whether given or captioned. None is the identity that captioned runs
        had before ctxedit 0.2.
        """
        return key_of(self._print_of(self.request.clip), self.request.preset, self._shared(), prompt)

    def caption(self) -> str:
        """What the caption depends on."""
        config, own = self.request.config, own_folder(self.request.config.model)
        captioner = part_identity(config.captioner, own, "captioner")
        by_clip = captioning.asks_clip(config, own is not None)
        by = part_identity(config.clip_model, own, "clip") if by_clip else None
        return key_of(self._print_of(self.request.clip), config.clip, captioner, by)

    def tune(self, prompt: str) -> str:
        """What the tuning depends on."""
        return key_of(self._print_of(self.request.clip), [key_of(s) for s in self._shared()], prompt)

    def invert(self, prompt: str) -> str:
        """What the inversion depends on."""
        return key_of(self.tune(prompt), self.request.config.invert)

    def round_trip(self, prompt: str) -> str:
        """What the round trip depends on."""
        config = self.request.config
        return key_of(self.invert(prompt), config.round_trip, config.edit.solver)

    def frames(self, prompt: str, target: str) -> str:
        """What an edit's frames at working size depend on: nothing of how they are written."""
        return key_of(*self._sampling(prompt, target))

    def upscale(self, prompt: str, target: str) -> str:
        """What the same frames at the upscaled size depend on."""
        return key_of(
            self.frames(prompt, target), *_upscaling(self.request.config, self._print_of), *self._pasting()
        )

    def edit(self, prompt: str, target: str) -> str:
        """What an edit's files depend on."""
        request = self.request
        return key_of(
            *self._sampling(prompt, target), request.source_size, request.audio, str(request.output),
            *([request.chroma] if request.chroma != "420" else []),
            *([] if request.metadata else ["no metadata"]),
            *_upscaling(request.config, self._print_of),
            *(self._pasting() if request.config.upscale.scale > 1 or request.source_size else []),
        )  # fmt: skip

    def _sampling(self, prompt: str, target: str) -> list[Any]:
        request, config = self.request, self.request.config
        mask = self._print_of(request.mask) if request.mask else None
        return [self.invert(prompt), config.fusion, config.edit, config.seed, target, mask]

    def _pasting(self) -> list[str]:
        """Marks edits by a mask that are larger than they were sampled: earlier ones are remade."""
        return ["outside the mask the source's pixels"] if self.request.mask else []

    def other_files(self) -> list[Any]:
        """Hashes of the files that settings name besides model, CLIP and captioner; empty if none."""
        config, print_of = self.request.config, self._print_of
        found = _addons(config, self.request.offline, print_of)
        if config.control.kind != "none":
            found += [one for one in _control(config, print_of)[1:] if one is not None]
        return found + (_upscaling(config, print_of) if Path(config.upscale.model).is_absolute() else [])

    def edit_name(self, prompt: str, target: str) -> str:
        """An edit's file name without a suffix; edits that differ in any setting have names of their own."""
        return artifact_name(target, self.edit(prompt, target))

    def frames_name(self, prompt: str, target: str) -> str:
        """The name of an edit's frames without a suffix; edits that are written differently share it."""
        return artifact_name(target, self.frames(prompt, target))

    def _shared(self) -> list[Any]:
        """Settings that tuning depends on; edits of one run may differ in the rest."""
        c, own = self.request.config, own_folder(self.request.config.model)
        # A later ctxedit carries other built-in models under the same name.
        seed, dtype = self.request.tuning_seed, settled_dtype(c.dtype, c.device)
        shared = [self._model, seed, dtype, c.clip, c.attention, c.adapter, c.tune]
        if c.clip.frames > c.window.size:
            shared.append(c.window)  # a clip in one piece is what it was before there were windows
        shared += _addons(c, self.request.offline, self._print_of)
        if c.adapter.enabled and c.adapter.image == "clip":
            shared.append(part_identity(c.clip_model, own, "clip"))
        if c.adapter.enabled and c.tune.adapter_init == "pretrained" and (file := pretrained_adapter(own)):
            shared.append(self._print_of(file))
        if c.control.kind != "none":
            shared += _control(c, self._print_of)
        return shared

    @cached_property
    def _model(self) -> str:
        return identity(self.request.config.model)

    def _print_of(self, path: Path) -> str:
        if path not in self._prints:
            self._prints[path] = fingerprint(path)
        return self._prints[path]


def artifact_name(target: str, key: str) -> str:
    """The name of what is made for a target, from the key of the stage that makes it."""
    return f"{slug(target)}-{key[:6]}"


def image_key(config: Config, offline: bool, files: Sequence[Path], *more: Any) -> str:
    """What a generated image depends on.

    Args:
        files: an adapter, an encoder or a layout; known, like LoRAs and models, by their contents.
        more: the text and all else.
    """
    prints = [fingerprint(file) for file in files]
    dtype = settled_dtype(config.dtype, config.device)
    addons = _addons(config, offline, fingerprint)
    return key_of(
        config, dtype, identity(config.model), addons, _upscaling(config, fingerprint), prints, *more
    )


def _addons(config: Config, offline: bool, print_of: Callable[[Path], str]) -> list[Any]:
    """LoRAs and embeddings by their contents, as a control map: they may be trained on under their names."""
    found: list[Any] = []
    if config.lora:
        merged = (split_scale(one) for one in config.lora)
        files = ((locate_file(name, "LoRA", lora.NAMES, offline), scale) for name, scale in merged)
        found.append([(print_of(file), scale) for file, scale in files])
    if config.embedding:
        named = (locate_file(name, "embedding", embedding.NAMES, offline) for name in config.embedding)
        found.append([(print_of(file), file.name) for file in named])
    return found


def _control(config: Config, print_of: Callable[[Path], str]) -> list[Any]:
    """The settings of the ControlNet, then its map and a network on disk, both by their contents.

    Both may move, or be made again under their names. A folder's own name stays: it says which map is
    computed for it.
    """
    control = config.control
    drawn = print_of(Path(control.map)) if control.map else None
    folder = Path(control.model)
    if folder.is_absolute() and folder.is_dir():
        return [replace(control, map="", model=folder.name), drawn, folder_identity(folder)]
    return [replace(control, map=""), drawn]


def _upscaling(config: Config, print_of: Callable[[Path], str]) -> list[Any]:
    """Settings of the super-resolution; a folder's model is identified by its contents, not its path."""
    upscale, own = config.upscale, own_folder(config.model)
    if upscale.scale == 1:
        return []
    folder = Path(upscale.model)
    if folder.is_absolute() and folder.is_dir():  # as paths in settings are
        inner = folder / "upscaler"
        return [replace(upscale, model=""), print_of(inner if inner.is_dir() else folder)]
    return [upscale, part_identity(upscale.model, own, "upscaler")]


@dataclass(frozen=True)
class Caption:
    """A source prompt, and the run's facts about its origin."""

    text: str
    key: str
    facts: dict[str, Any] = field(default_factory=dict)


def known_caption(request: Request, keys: Keys) -> Caption | None:
    """The source prompt without captioning: given, the run's, or of an earlier run of this clip."""
    if request.prompt is not None:
        return Caption(request.prompt, key_of(request.prompt), {"model": "given"})
    if request.run is not None and (facts := request.run.facts("caption")).get("text"):
        return Caption(str(facts["text"]), "", {k: v for k, v in facts.items() if k != "text"})
    facts = Run.noted_of(request.runs, request.clip, "caption", key := keys.caption())
    if not facts.get("text"):
        return None
    return Caption(str(facts["text"]), key, {k: v for k, v in facts.items() if k != "text"})


def find_run(request: Request, keys: Keys, prompt: str) -> Run | None:
    """The existing run of a request whose source prompt is known; None if there is none."""
    if request.run is not None:
        return request.run
    if found := Run.find(request.runs, request.clip, request.preset, keys.identity(prompt)):
        return found
    older = Run.find(request.runs, request.clip, request.preset, keys.identity(None))
    return older if older is not None and older.facts("caption").get("text") == prompt else None
