"""What each stage's result depends on, as hashes. Nothing is loaded, captioned or written to find them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

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

    def edit(self, prompt: str, target: str) -> str:
        """What an edit depends on."""
        request, config = self.request, self.request.config
        mask = self._print_of(request.mask) if request.mask else None
        return key_of(
            self.invert(prompt), config.fusion, config.edit, config.seed, target, mask,
            request.source_size, request.audio, str(request.output),
            *([request.chroma] if request.chroma != "420" else []),
            *([] if request.metadata else ["no metadata"]),
            *(self._upscaling() if config.upscale.scale > 1 else []),
        )  # fmt: skip

    def _upscaling(self) -> list[Any]:
        """Settings of the super-resolution; the model of a folder by what it holds, wherever it lies."""
        upscale, own = self.request.config.upscale, own_folder(self.request.config.model)
        folder = Path(upscale.model)
        if folder.is_absolute() and folder.is_dir():  # as paths in settings are
            inner = folder / "upscaler"
            return [replace(upscale, model=""), folder_identity(inner if inner.is_dir() else folder)]
        return [upscale, part_identity(upscale.model, own, "upscaler")]

    def beside(self) -> list[Any]:
        """What settings name on disk beside model, CLIP and captioner, by its content; empty for nothing."""
        config = self.request.config
        control = self._control()[1:] if config.control.kind != "none" else []
        control = [one for one in control if one is not None]
        upscaling = self._upscaling() if Path(config.upscale.model).is_absolute() else []
        return [one for one in (self._loras(), self._embeddings(), control, upscaling) if one]

    def edit_name(self, prompt: str, target: str) -> str:
        """An edit's file name without a suffix; edits that differ in any setting have names of their own."""
        return f"{slug(target)}-{self.edit(prompt, target)[:6]}"

    def _shared(self) -> list[Any]:
        """Settings that tuning depends on; edits of one run may differ in the rest."""
        c, own = self.request.config, own_folder(self.request.config.model)
        # A later ctxedit carries other built-in models under the same name.
        seed, dtype = self.request.tuning_seed, settled_dtype(c.dtype, c.device)
        shared = [self._model, seed, dtype, c.clip, c.attention, c.adapter, c.tune]
        if c.clip.frames > c.window.size:
            shared.append(c.window)  # a clip in one piece is what it was before there were windows
        if c.lora:
            shared.append(self._loras())
        if c.embedding:
            shared.append(self._embeddings())
        if c.adapter.enabled and c.adapter.image == "clip":
            shared.append(part_identity(c.clip_model, own, "clip"))
        if c.adapter.enabled and c.tune.adapter_init == "pretrained" and (file := pretrained_adapter(own)):
            shared.append(self._print_of(file))
        if c.control.kind != "none":
            shared += self._control()
        return shared

    @cached_property
    def _model(self) -> str:
        return identity(self.request.config.model)

    def _loras(self) -> list[Any]:
        """Known by their content, as a control map: a LoRA may be trained on under its name."""
        merged = map(split_scale, self.request.config.lora)
        offline = self.request.offline
        return [
            (self._print_of(locate_file(name, "LoRA", lora.NAMES, offline)), scale) for name, scale in merged
        ]

    def _embeddings(self) -> list[Any]:
        offline, names = self.request.offline, self.request.config.embedding
        files = (locate_file(name, "embedding", embedding.NAMES, offline) for name in names)
        return [(self._print_of(file), file.name) for file in files]

    def _control(self) -> list[Any]:
        """The settings of the ControlNet, then its map and a network on disk, both by their content.

        Both may move, or be made again under their names. A folder's own name stays: it says which map is
        computed for it.
        """
        control = self.request.config.control
        drawn = self._print_of(Path(control.map)) if control.map else None
        folder = Path(control.model)
        if folder.is_absolute() and folder.is_dir():
            return [replace(control, map="", model=folder.name), drawn, folder_identity(folder)]
        return [replace(control, map=""), drawn]

    def _print_of(self, path: Path) -> str:
        if path not in self._prints:
            self._prints[path] = fingerprint(path)
        return self._prints[path]


@dataclass(frozen=True)
class Caption:
    """A source prompt, and what the run notes of where it comes from."""

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
    """The run of a request whose source prompt is known; None where there is none yet."""
    if request.run is not None:
        return request.run
    if found := Run.find(request.runs, request.clip, request.preset, keys.identity(prompt)):
        return found
    older = Run.find(request.runs, request.clip, request.preset, keys.identity(None))
    return older if older is not None and older.facts("caption").get("text") == prompt else None
