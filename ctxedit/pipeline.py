"""The only file that knows the order of the stages, and what each one's result depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctxedit.config import Config
from ctxedit.errors import ConfigError, InputError, WeightsError
from ctxedit.media.mask import read_mask
from ctxedit.media.temporary import atomic
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.attention import FrameView, seen_frames
from ctxedit.models.backbone import Backbone, builtin_vocabulary, split_words
from ctxedit.models.clip import ClipScorer
from ctxedit.models.device import keep_heap, pick_device, pick_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.temporal import TemporalLayers
from ctxedit.models.weights import locate
from ctxedit.runs import DEFAULT_ROOT, Run, fingerprint, key_of, slug
from ctxedit.stages import caption as captioning
from ctxedit.stages import edit as editing
from ctxedit.stages import evaluate as evaluating
from ctxedit.stages import generate as generating
from ctxedit.stages import report as reporting
from ctxedit.stages import tune as tuning
from ctxedit.stages.invert import invert
from ctxedit.stages.prepare import Prepared, prepare
from ctxedit.stages.tune import TuneStep

#: Below this the built-in CLIP does not see the prompt in the clip. Ten drawn clips with their captions gave
#: 0.79 to 0.96, six of real footage with the built-in captions 0.10 to 0.67.
_RECOGNISED = 0.75


class Reporter:
    """Who is told what goes on. This one keeps silent; the command line's shows it."""

    def say(self, text: str) -> None:
        """A line for the person."""

    def warn(self, text: str) -> None:
        """A line that should not be missed."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """A stage with a progress: the callable takes steps done and a short note."""
        yield lambda done, note="": None


@dataclass(frozen=True)
class Options:
    """What is asked of the tool beyond the settings of the method.

    Attributes:
        prompt: the source prompt; None captions the clip.
        mask: where change is allowed.
        output: the edited file; None is inside the run folder.
        source_size: write at the source's size.
        audio: copy the source's sound.
        overwrite: replace existing outputs, redo finished edits.
        offline: touch no hub.
        runs: where run folders lie.
        lavis_python: interpreter of the LAVIS worker.
    """

    prompt: str | None = None
    mask: Path | None = None
    output: Path | None = None
    source_size: bool = False
    audio: bool = True
    overwrite: bool = False
    offline: bool = False
    runs: Path = DEFAULT_ROOT
    lavis_python: Path | None = None


@dataclass(frozen=True)
class EditResult:
    """One edit: its files, its frames' figures (when evaluated), whether it was there already."""

    target: str
    files: reporting.Files
    reused: bool
    figures: evaluating.Figures | None = None


class Session:
    """One clip, one preset: stages on demand, each at most once, over a run folder.

    Args:
        clip: the source.
        config: settings.
        preset: the preset's name, for labels.
        options: outputs, prompt, mask.
        reporter: who is told.
        run: a run to go on with; None finds or makes the one of these inputs when it is first needed.
    """

    def __init__(
        self,
        clip: Path,
        config: Config,
        preset: str,
        options: Options | None = None,
        reporter: Reporter | None = None,
        run: Run | None = None,
    ) -> None:
        self.clip, self.config, self.preset = clip, config, preset
        self.options = options or Options()
        self.reporter = reporter or Reporter()
        self._run = run
        self._stack = ExitStack()
        self._adapter: ContextAdapter | None = None
        self._temporal: TemporalLayers | None = None

    @classmethod
    def reopen(
        cls,
        run: Run,
        config: Config | None = None,
        options: Options | None = None,
        reporter: Reporter | None = None,
    ) -> Session:
        """Go on with a run; ``config`` replaces its settings where they may still change (edit, fusion)."""
        run.check_clip()
        return cls(run.clip, config or run.config, run.preset, options, reporter, run)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take temporal layers and attention off the network again."""
        if self._temporal is not None:
            self._temporal.remove()
        self._stack.close()

    # -- parts, loaded when first needed -------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        device = pick_device(self.config.device)
        if device.type == "cpu":
            keep_heap()
        return device

    @cached_property
    def backbone(self) -> Backbone:
        checkpoint = locate(self.config.model, self.options.offline)
        dtype = pick_dtype(self.config.dtype, self.device)
        self.reporter.say(f"loading {checkpoint.name} on {self.device} ({str(dtype).split('.')[-1]})")
        backbone = Backbone(checkpoint, self.device, dtype)
        self._stack.enter_context(backbone.attention(self.config.attention))
        return backbone

    @cached_property
    def prepared(self) -> Prepared:
        prepared = prepare(self.clip, self.config.clip, self.backbone.resolution, self.backbone.multiple)
        height, width = prepared.frames.shape[1:3]
        self.reporter.say(f"{len(prepared.frames)} frames of {self.clip.name} at {width}×{height}")
        return prepared

    @cached_property
    def run(self) -> Run:
        """The run folder of these inputs."""
        if self._run is not None:
            return self._run
        return Run.create(self.options.runs, self.clip, self.preset, self.config, self.identity)

    @property
    def identity(self) -> str:
        """A hash of these inputs: what a run folder is found again by."""
        return key_of(fingerprint(self.clip), self.preset, self._shared_settings(), self.options.prompt)

    @cached_property
    def latents(self) -> Tensor:
        return self.backbone.encode(self.prepared.padded)

    @cached_property
    def view(self) -> FrameView:
        frames = len(self.prepared.frames)
        height, width = self.prepared.padded.shape[1:3]
        side = (height // self.backbone.factor, width // self.backbone.factor)
        return FrameView(seen_frames(self.config.attention, frames), side)

    def _shared_settings(self) -> list[Any]:
        """Settings that tuning depends on; edits of one run may differ in the rest."""
        c = self.config
        return [c.model, self._tuning_seed, c.dtype, c.clip, c.attention, c.adapter, c.tune]

    @property
    def _tuning_seed(self) -> int:
        """An edit of a run may draw other noise; the run's tuning stays what it is."""
        return self.config.seed if self._run is None else self._run.config.seed

    def _caption_key(self) -> str:
        config = self.config
        return key_of(fingerprint(self.clip), config.clip, config.captioner, config.model)

    def _tune_key(self) -> str:
        return key_of(fingerprint(self.clip), [key_of(s) for s in self._shared_settings()], self.prompt)

    def _invert_key(self) -> str:
        return key_of(self._tune_key(), self.config.invert)

    # -- stages --------------------------------------------------------------------------------------------

    @cached_property
    def prompt(self) -> str:
        """The source prompt: given, or the run's, or captioned now."""
        if self.options.prompt is not None:
            text = self.options.prompt
            if not text.strip():
                raise InputError("the prompt is empty", "leave it out and the clip is captioned")
            if self.run.facts("caption").get("text") != text:
                self.run.finish("caption", key_of(text), [], text=text, model="given")
            return text
        if self._run is not None and (known := self._run.facts("caption").get("text")):
            return str(known)
        return self.caption()

    def caption(self) -> str:
        """Caption the clip; noted in the run folder."""
        config, key = self.config, self._caption_key()
        if self.run.done("caption", key):
            return str(self.run.facts("caption")["text"])
        builtin = locate(config.model, self.options.offline).builtin
        dtype = pick_dtype(config.dtype, self.device)
        model = captioning.make_captioner(
            config.captioner, builtin, self.device, dtype, self.options.offline, self.options.lavis_python
        )
        with self.reporter.task("caption", 1) as progress:
            text = captioning.caption(self.prepared.clip.frames, model)
            progress(1, "")
        self.reporter.say(f"caption ({model.name}): {text}")
        self.run.finish("caption", key, [], text=text, model=model.name)
        return text

    def tune(self) -> Run:
        """Tune unless it is done; resumes a killed tuning."""
        key, config = self._tune_key(), self.config.tune
        if self.backbone.builtin and self.config.clip_model in ("auto", "builtin"):
            self._warn_of_strange_pictures()
        shift = self._shift(self.prompt)
        self._temporal_layers()
        tuned = self.run.folder / "tune" / "tuned.safetensors"
        files = ["tune/tuned.safetensors"] if config.steps else []
        if not self.run.done("tune", key) and config.steps:
            folder = self._tuning_folder(key)
            with self.reporter.task("tune", config.steps) as progress:

                def report(row: TuneStep) -> None:
                    note = f"loss {row.loss:.4f}" + (f", shift {row.shift:.3f}" if shift else "")
                    progress(row.step, note)

                tensors = tuning.tune(
                    self.backbone, self.latents, self.backbone.embed([self.prompt]), self.view, config,
                    folder, self._tuning_seed, shift, self._temporal, report,
                )  # fmt: skip
            with atomic(tuned, True) as temporary:
                save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"prompt": self.prompt})
            if shift is not None:
                with atomic(folder / "adapter.safetensors", True) as temporary:
                    shift.adapter.save(temporary, prompt=self.prompt)
                files.append("tune/adapter.safetensors")
            (folder / "state.pt").unlink(missing_ok=True)
        elif config.steps:
            self._load_tuned(tuned, shift)
        if not self.run.done("tune", key):
            self.run.finish("tune", key, files, prompt=self.prompt, steps=config.steps)
        self.__dict__["_ready"] = True
        return self.run

    def _tuning_folder(self, key: str) -> Path:
        """The folder of a tuning in progress; what another key left there is cleared."""
        folder = self.run.folder / "tune"
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "key"
        if not mark.exists() or mark.read_text() != key:
            for name in ("state.pt", "log.jsonl"):
                (folder / name).unlink(missing_ok=True)
            mark.write_text(key)
        return folder

    def _load_tuned(self, path: Path, shift: ContextShift | None) -> None:
        parameters = tuning.trainable(self.backbone, self.config.tune, shift, self._temporal)
        try:
            tensors = load_file(path)
        except Exception as error:
            raise WeightsError(f"{path} is broken: {str(error)[:120]}", "delete it and tune again") from error
        tuning.load_tensors(parameters, tensors)

    def _shift(self, prompt: str) -> ContextShift | None:
        """The adapter bound to a prompt; the same adapter for every prompt."""
        config = self.config.adapter
        if not config.enabled:
            return None
        if self._adapter is None:
            width = self._image_scorer.image_width if config.image == "clip" else 0
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._tuning_seed)
                b = self.backbone
                self._adapter = ContextAdapter(config, b.latent_channels, b.context_width, width)
            self._adapter.to(self.device).eval().requires_grad_(False)
        look = self._look if config.image == "clip" else None
        return ContextShift(self._adapter, self.backbone.embed([prompt]), len(self.prepared.frames), look)

    def _look(self, latents: Tensor) -> Tensor:
        """The clean latents, or the prediction of them, as CLIP sees them decoded."""
        return self._image_scorer.image_tokens(self.backbone.decode(latents)).to(self.device)

    def _temporal_layers(self) -> None:
        if self.config.attention.temporal and self._temporal is None:
            self._temporal = self.backbone.temporal_layers(self._tuning_seed).eval().requires_grad_(False)

    def invert(self) -> Tensor:
        """The inverted trajectory (S + 1, F, C, h, w), made or reused; level 0 alone where none is needed."""
        if "_ready" not in self.__dict__:
            self.tune()
        if self.config.edit.start == "noise":
            return self.latents[None]
        key, path = self._invert_key(), self.run.folder / "inversion.safetensors"
        if self.run.done("invert", key):
            return load_file(path)["trajectory"].to(self.device)
        config = self.config.invert
        prompt = self.prompt if config.prompt == "source" else ""
        backbone = self.backbone
        total = config.steps * (1 + config.refinements)
        with self.reporter.task("invert", total) as progress:
            trajectory = invert(
                backbone, self.latents, backbone.embed([prompt]), backbone.levels(config.steps), self.view,
                self._shift(prompt), config.refinements, lambda done, _: progress(done, ""),
            )  # fmt: skip
        with atomic(path, True) as temporary:
            save_file({"trajectory": trajectory.cpu().contiguous()}, temporary)
        self.run.finish("invert", key, ["inversion.safetensors"], steps=config.steps)
        return trajectory

    def edit(self, target: str) -> EditResult:
        """Edit towards a target and write the three files; reused where it is done already."""
        self._check_target(target)
        options = self.options
        name, key = self._edit_key(target)
        files = reporting.files_for(options.output or self.run.folder / "edits" / f"{name[5:]}.mp4")
        if self.run.done(name, key) and not options.overwrite:
            return EditResult(target, files, True)
        trajectory = self.invert()
        frames = self.edited_frames(target, trajectory)
        files.video.parent.mkdir(parents=True, exist_ok=True)
        overwrite = options.overwrite or options.output is None
        reporting.write(
            self.prepared, frames, target, self.prompt, files,
            source_size=options.source_size, audio=options.audio, overwrite=overwrite,
        )  # fmt: skip
        np_path = self.run.folder / "edits" / f"{name[5:]}.safetensors"
        np_path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(np_path, True) as temporary:
            save_file({"frames": torch.from_numpy(np.ascontiguousarray(frames))}, temporary)
        kept = [str(Path(p).resolve()) for p in files.names()] + [f"edits/{np_path.name}"]
        self.run.finish(
            name, key, kept, target=target, video=str(files.video.resolve()), frames=f"edits/{np_path.name}"
        )
        return EditResult(target, files, False)

    def _edit_key(self, target: str) -> tuple[str, str]:
        """An edit's stage name and key."""
        config, options = self.config, self.options
        mask_hash = fingerprint(options.mask) if options.mask else None
        key = key_of(
            self._invert_key(), config.fusion, config.edit, config.seed, target, mask_hash,
            options.source_size, options.audio, str(options.output),
        )  # fmt: skip
        return f"edit/{slug(target)}-{key[:6]}", key

    def edited_frames(self, target: str, trajectory: Tensor) -> NDArray[np.uint8]:
        """RGB uint8 (F, h, w, 3) of an edit at working size, not written."""
        config, backbone = self.config, self.backbone
        scene = editing.Scene(
            backbone, self.prompt, trajectory, backbone.levels(config.edit.steps), self.view
        )
        pixels = self._mask()
        mask = None
        if pixels is not None:
            from ctxedit.media.geometry import pad

            padded = pad((pixels[..., None] * 255).astype(np.uint8).repeat(3, -1), self.prepared.fit)[..., 0]
            mask = editing.latent_mask(torch.from_numpy(padded.astype(np.float32) / 255), self.view.side)
        with self.reporter.task(f"edit “{target}”", config.edit.steps) as progress:
            latents = editing.edit(
                scene, target, config, self._shift(target), mask, lambda done, _: progress(done, "")
            )
        frames = self.prepared.unpad(backbone.decode(latents))
        if pixels is not None:
            # Outside the person's mask the pixels are the source's own, not the autoencoder's.
            keep = pixels[..., None]
            frames = np.rint(frames * keep + self.prepared.frames * (1 - keep)).astype(np.uint8)
        return frames

    def evaluate(self, target: str, frames: NDArray[np.uint8]) -> evaluating.Figures:
        """Figures of edited frames against the target and the source."""
        return evaluating.evaluate(
            frames, target, self._image_scorer, self.prepared.frames, self.prompt, self._mask()
        )

    def evaluate_run(self) -> list[dict[str, Any]]:
        """Figures of every finished edit of the run; noted in ``metrics.json`` by the caller."""
        rows = []
        for name in self.run.edits():
            facts = self.run.facts(name)
            frames = load_file(self.run.folder / facts["frames"])["frames"].numpy()
            figures = self.evaluate(facts["target"], frames)
            rows.append({"target": facts["target"], "video": facts["video"], **figures.table()})
        if not rows:
            raise InputError(
                f"{self.run.folder} has no edits yet", "make one with `ctxedit edit --target TEXT`"
            )
        return rows

    @cached_property
    def _image_scorer(self) -> ClipScorer:
        builtin = locate(self.config.model, self.options.offline).builtin
        return evaluating.make_scorer(self.config.clip_model, builtin, self.device, self.options.offline)

    def _mask(self) -> NDArray[np.float32] | None:
        if self.options.mask is None:
            return None
        clip = self.config.clip
        return read_mask(self.options.mask, clip.frames, clip.start, clip.stride, self.prepared.fit)

    # -- what can be said before it goes wrong ---------------------------------------------------------------

    def _check_target(self, target: str) -> None:
        if not target.strip():
            raise InputError("the target is empty", "say what the clip shall show")
        self.backbone.words(target)
        self.backbone.words(self.prompt)
        warn_of_unknown_words(self.backbone, target, self.reporter)

    def _warn_of_strange_pictures(self) -> None:
        frames = self.prepared.frames[:: max(1, len(self.prepared.frames) // 4)]
        images, text = self._image_scorer.embed_images(frames), self._image_scorer.embed_texts([self.prompt])
        if (got := float((images @ text.T).mean())) < _RECOGNISED:
            self.reporter.warn(
                f"the built-in models do not recognise “{self.prompt}” in this clip (similarity {got:.2f}): "
                "they know drawn scenes only; for real footage name a real checkpoint with --model sd15"
            )


def warn_of_unknown_words(backbone: Backbone, text: str, reporter: Reporter) -> None:
    """Say which words the built-in models were never taught."""
    known = builtin_vocabulary(backbone.path)
    if known is None:
        return
    strange = sorted({w for w in split_words(text) if w[0].isalnum() and w.lower() not in known})
    if strange:
        reporter.warn(
            f"the built-in models do not know {', '.join(map(repr, strange))}: "
            "see `ctxedit models ls` for what they know, or name a real checkpoint with --model sd15"
        )


def generate(
    text: str,
    config: Config,
    options: Options,
    reporter: Reporter,
    count: int = 1,
    adapter: Path | None = None,
) -> NDArray[np.uint8]:
    """Text to image on the settings' backbone, at ``clip.size`` or the backbone's own resolution.

    Args:
        text: what the picture shall show.
        config: model, seed, edit.steps, guidance.
        options: offline.
        reporter: who is told.
        count: pictures.
        adapter: a tuned context adapter (``adapter.safetensors`` of a run), or None.

    Returns:
        RGB uint8 (count, H, W, 3).
    """
    if not text.strip():
        raise InputError("the text is empty", "say what the picture shall show")
    device = pick_device(config.device)
    backbone = Backbone.load(config.model, device, pick_dtype(config.dtype, device), options.offline)
    warn_of_unknown_words(backbone, text, reporter)
    size = config.clip.size
    if size and size % backbone.multiple:
        raise ConfigError(f"size {size} is no multiple of {backbone.multiple}", "choose one that is")
    shift = None
    if adapter is not None:
        network = ContextAdapter.load(adapter, device).eval().requires_grad_(False)
        if network.sizes["context_width"] != backbone.context_width:
            raise ConfigError(f"{adapter} was tuned on another model than {backbone.name}", "name its --model")
        # Each picture is a clip of one frame.
        shift = ContextShift(network, backbone.embed([text] * count), 1)
    sides = (size, size) if size else None
    with reporter.task(f"image “{text}”", config.edit.steps) as progress:
        return generating.generate(
            backbone, text, config, count, sides, shift, lambda done, _: progress(done, "")
        )


def run(session: Session, targets: list[str]) -> list[EditResult]:
    """All stages; one tuning and one inversion serve every target. Targets are checked before any of it."""
    for target in targets:
        session._check_target(target)
    session.tune()
    session.invert()
    results = []
    for target in targets:
        result = session.edit(target)
        facts = session.run.facts(session._edit_key(target)[0])
        frames = load_file(session.run.folder / facts["frames"])["frames"].numpy()
        results.append(replace(result, figures=session.evaluate(target, frames)))
    return results
