"""The only file that knows the order of the stages, and what each one's result depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ctxedit import __version__
from ctxedit.config import BUILTIN, Config
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.probe import probe
from ctxedit.media.temporary import atomic, sweep
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.backbones import open_backbone
from ctxedit.models.device import name_of, pick_device, pick_dtype
from ctxedit.models.shift import ContextShift
from ctxedit.models.tensors import save_tensors
from ctxedit.models.weights import identity, locate, part_identity
from ctxedit.provenance import facts as provenance_of
from ctxedit.provenance import to_text
from ctxedit.runs import Run, fingerprint, key_of, slug
from ctxedit.stages import caption as captioning
from ctxedit.stages import edit as editing
from ctxedit.stages import evaluate as evaluating
from ctxedit.stages import generate as generating
from ctxedit.stages import report as reporting
from ctxedit.stages import tune as tuning
from ctxedit.stages.evaluate import make_scorer
from ctxedit.stages.invert import invert
from ctxedit.stages.prepare import read_for_caption
from ctxedit.stages.tune import TuneStep
from ctxedit.stages.wording import check_describes
from ctxedit.workbench import Options, Reporter, Workbench, warn_of_unknown_words

__all__ = ["EditResult", "Options", "Reporter", "Session", "generate", "run"]


@dataclass(frozen=True)
class EditResult:
    """One edit: its files, its frames' figures (when evaluated), whether it was there already."""

    target: str
    files: reporting.Files
    reused: bool
    figures: evaluating.Figures | None = None


class Session(Workbench):
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
        # An edit of a run may draw other noise; the run's tuning stays what it is.
        seed = config.seed if run is None else run.config.seed
        super().__init__(clip, config, options or Options(), reporter or Reporter(), seed)
        self.preset, self._run, self._tuned = preset, run, False
        self._prints: dict[Path, str] = {}
        #: Asked after every tuning step; see :func:`ctxedit.stages.tune.tune`.
        self.probe: Callable[[int], float | None] = lambda step: None

    @classmethod
    def reopen(
        cls,
        run: Run,
        config: Config | None = None,
        options: Options | None = None,
        reporter: Reporter | None = None,
    ) -> Session:
        """Go on with a run; ``config`` replaces its settings where they may still change (edit, fusion)."""
        run.check_clip((reporter or Reporter()).warn)
        return cls(run.clip, config or run.config, run.preset, options, reporter, run)

    @cached_property
    def run(self) -> Run:
        """The run folder of these inputs."""
        if self._run is not None:
            return self._run
        options, warn = self.options, self.reporter.warn
        return Run.create(options.runs, self.clip, self.preset, self.config, self.identity, warn)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the run folder for a stage; whoever else holds it is waited for, which is said."""
        with self.run.working(self.reporter.say):
            yield

    def print_of(self, path: Path) -> str:
        """A file's or folder's fingerprint, taken once a session."""
        if path not in self._prints:
            self._prints[path] = fingerprint(path)
        return self._prints[path]

    def _must_run(self, stage: str, key: str, what: str) -> bool:
        """Whether a stage is not done; if that is because of its files, it is said."""
        standing = self.run.standing(stage, key)
        if standing.flaw:
            self.reporter.warn(f"{standing.flaw}: {what} again")
        return not standing.done

    @property
    def identity(self) -> str:
        """A hash of these inputs: what a run folder is found again by."""
        return key_of(self.print_of(self.clip), self.preset, self._shared_settings(), self.options.prompt)

    def _shared_settings(self) -> list[Any]:
        """Settings that tuning depends on; edits of one run may differ in the rest."""
        c = self.config
        # A later ctxedit carries other built-in models under the same name.
        shared = [identity(c.model), self.tuning_seed, c.dtype, c.clip, c.attention, c.adapter, c.tune]
        if c.adapter.enabled and c.adapter.image == "clip":
            shared.append(part_identity(c.clip_model, self.own, "clip"))
        if c.control.kind != "none":
            # A map is known by what is in it: it may move, and it may be drawn anew under its name.
            drawn = self.print_of(Path(c.control.map)) if c.control.map else None
            shared += [replace(c.control, map=""), drawn]
        return shared

    def caption_key(self) -> str:
        """What the caption depends on."""
        config = self.config
        says = part_identity(config.captioner, self.own, "captioner")
        by_clip = captioning.asks_clip(config, self.own is not None)
        by = part_identity(config.clip_model, self.own, "clip") if by_clip else None
        return key_of(self.print_of(self.clip), config.clip, says, by)

    def tune_key(self) -> str:
        """What the tuning depends on."""
        return key_of(self.print_of(self.clip), [key_of(s) for s in self._shared_settings()], self.prompt)

    def invert_key(self) -> str:
        """What the inversion depends on."""
        return key_of(self.tune_key(), self.config.invert)

    # -- stages --------------------------------------------------------------------------------------------

    @cached_property
    def prompt(self) -> str:
        """The source prompt: given, or the run's, or captioned now."""
        if self.options.prompt is not None:
            text = self.options.prompt
            if not text.strip():
                raise InputError("the prompt is empty", "omit it to caption the clip")
            if self.run.facts("caption").get("text") != text:
                self.run.finish("caption", key_of(text), [], text=text, model="given")
            return text
        if self._run is not None and (known := self._run.facts("caption").get("text")):
            return str(known)
        return self.caption()

    def caption(self) -> str:
        """Caption the clip; noted in the run folder."""
        with self.working():
            return self._caption()

    def _caption(self) -> str:
        config, key = self.config, self.caption_key()
        if self.run.done("caption", key):
            return str(self.run.facts("caption")["text"])
        dtype = pick_dtype(config.dtype, self.device)
        model = captioning.make_captioner(
            config.captioner, self.own, self.device, dtype, self.options.offline, self.options.lavis_python
        )
        by_clip = captioning.asks_clip(config, self.own is not None)
        # One of its own: kept, it would take its memory from all the stages to come.
        scorer = (
            make_scorer(config.clip_model, self.own, self.device, self.options.offline) if by_clip else None
        )
        with self.reporter.task("caption", 1) as progress:
            text = captioning.caption(read_for_caption(self.clip, config.clip).frames, model, scorer)
            progress(1, "")
        self.reporter.say(f"caption ({model.name}): {text}")
        self.run.finish("caption", key, [], text=text, model=model.name, by="clip" if by_clip else "vote")
        return text

    def tune(self) -> Run:
        """Tune unless it is done; resumes a killed tuning."""
        with self.working():
            self._tune()
        self._tuned = True
        return self.run

    def _tune(self) -> None:
        key, config = self.tune_key(), self.config.tune
        if self.own is not None and self.scorer.name == BUILTIN:
            self.warn_of_strange_pictures(self.prompt)
        shift = self.shift(self.prompt)
        folder = self.run.folder / "tune"
        must = self._must_run("tune", key, "the clip is tuned on")
        if must and config.steps:
            self._tune_now(self._tuning_folder(key), shift)
        elif config.steps:
            self._load_tuned(folder / "tuned.safetensors", shift)
        if must:
            files = ["tune/tuned.safetensors"] if config.steps else []
            self.run.finish("tune", key, files, prompt=self.prompt, steps=config.steps)
        if config.steps and shift is not None and self._must_run("adapter", key, "the adapter is saved"):
            # The tuned weights hold it, too: by itself it is there to be taken elsewhere.
            shift.adapter.save(folder / "adapter.safetensors", prompt=self.prompt)
            self.run.finish("adapter", key, ["tune/adapter.safetensors"])
        (folder / "state.pt").unlink(missing_ok=True)

    def _tune_now(self, folder: Path, shift: ContextShift | None) -> None:
        config = self.config.tune
        with self.reporter.task("tune", config.steps) as progress:

            def report(row: TuneStep) -> None:
                note = f"loss {row.loss:.4f}" + (f", shift {row.shift:.3f}" if shift else "")
                progress(row.step, note)

            tensors = tuning.tune(
                self.backbone, self.latents, self.backbone.condition([self.prompt]), self.view, config,
                folder, self.tuning_seed, shift, self.temporal, report, self.probe, self.reporter.warn,
            )  # fmt: skip
        save_tensors(folder / "tuned.safetensors", tensors, {"prompt": self.prompt})

    def _tuning_folder(self, key: str) -> Path:
        """The folder of a tuning in progress; what another key left there is cleared."""
        folder = self.run.folder / "tune"
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "key"
        if not mark.exists() or mark.read_bytes() != key.encode():
            for name in ("state.pt", "log.jsonl"):
                (folder / name).unlink(missing_ok=True)
            with atomic(mark, True) as temporary:
                temporary.write_text(key)
        return folder

    def _load_tuned(self, path: Path, shift: ContextShift | None) -> None:
        parameters = tuning.trainable(self.backbone, self.config.tune, shift, self.temporal)
        tuning.load_tensors(parameters, load_file(path))

    def invert(self) -> Tensor:
        """The inverted trajectory (S + 1, F, C, h, w), made or reused; level 0 alone where none is needed."""
        with self.working():
            if not self._tuned:
                self.tune()
            if self.config.edit.start == "noise":
                return self.latents[None]
            key, path = self.invert_key(), self.run.folder / "inversion.safetensors"
            if self._must_run("invert", key, "the clip is inverted"):
                save_tensors(path, {"trajectory": self._invert_now()})
                self.run.finish("invert", key, [path.name], steps=self.config.invert.steps)
            return load_file(path)["trajectory"].to(self.device)

    def _invert_now(self) -> Tensor:
        config, backbone = self.config.invert, self.backbone
        prompt = self.prompt if config.prompt == "source" else ""
        total = config.steps * (1 + config.refinements)
        with self.reporter.task("invert", total) as progress:
            return invert(
                backbone, self.latents, backbone.condition([prompt]), backbone.levels(config.steps),
                self.view, self.shift(prompt), config.refinements, lambda done, _: progress(done, ""),
            )  # fmt: skip

    def edit(self, target: str) -> EditResult:
        """Edit towards a target and write the three files; reused where it is done already."""
        self.check_target(target)
        with self.working():
            return self._edit(target)

    def _edit(self, target: str) -> EditResult:
        options = self.options
        name, key = self.edit_key(target)
        files = self.edit_files(name)
        sweep(files.video.parent)
        if not self._must_run(name, key, "the edit's files are written") and not options.overwrite:
            return EditResult(target, files, True)
        kept = f"edits/{name[5:]}.safetensors"
        frames = self._frames(name, key, target, kept)
        video, facts = files.video, self.facts_of(target)
        settings = {"seed": facts["seed"], **facts["settings"], **facts["output"]}

        def write(staged: list[Path]) -> None:
            if video.is_dir():
                staged[0].mkdir()  # that it is a folder need not show in its name
            reporting.write(
                self.prepared, frames, target, self.prompt, reporting.Files(*staged),
                source_size=options.source_size, audio=options.audio, overwrite=True,
                chroma=options.chroma, about=to_text(facts) if options.metadata else None,
                warn=self.reporter.warn,
            )  # fmt: skip

        self.run.publish(
            name, key, (video, files.side_by_side, files.sheet), write,
            options.overwrite or options.output is None, [kept],
            target=target, video=str(video.resolve()), frames=kept,
            device=name_of(self.device), dtype=str(self.backbone.dtype).split(".")[-1],
            settings={k: v for k, v in settings.items() if k != "output"},
        )  # fmt: skip
        return EditResult(target, files, False)

    def facts_of(self, target: str) -> dict[str, Any]:
        """How an edit is made, as it stands inside its files; see :mod:`ctxedit.provenance`."""
        other_seed = self.tuning_seed != self.config.seed
        return provenance_of(
            "edit", self.config, self.preset, __version__, target=target, prompt=self.prompt,
            source={"name": self.clip.name, "blake2b": self.print_of(self.clip)},
            tuning_seed=self.tuning_seed if other_seed else None, output=self.options.given(),
        )  # fmt: skip

    def _frames(self, name: str, key: str, target: str, kept: str) -> NDArray[np.uint8]:
        """An edit's frames at working size: sampled, or read where they are done already."""
        stage, path = name.replace("edit/", "frames/", 1), self.run.folder / kept
        if self._must_run(stage, key, "the edit is sampled") or self.options.overwrite:
            tensors = {"frames": torch.from_numpy(self.edited_frames(target, self.invert()))}
            if (mask := self.mask()) is not None:
                tensors["mask"] = torch.from_numpy(mask)
            save_tensors(path, tensors)
            self.run.finish(stage, key, [kept])
            return tensors["frames"].numpy()
        return load_file(path)["frames"].numpy()

    def edit_files(self, name: str) -> reporting.Files:
        """Where the edit stage of this name leaves its results."""
        suffix = ".png" if probe(self.clip).kind == "image" else ".mp4"
        inside = self.run.folder / "edits" / f"{name[5:]}{suffix}"
        return reporting.files_for(self.options.output or inside)

    def edit_key(self, target: str) -> tuple[str, str]:
        """An edit's stage name and key."""
        config, options = self.config, self.options
        mask_hash = self.print_of(options.mask) if options.mask else None
        key = key_of(
            self.invert_key(), config.fusion, config.edit, config.seed, target, mask_hash,
            options.source_size, options.audio, str(options.output),
            *([options.chroma] if options.chroma != "420" else []),
            *([] if options.metadata else ["no metadata"]),
        )  # fmt: skip
        return f"edit/{slug(target)}-{key[:6]}", key

    def edited_frames(self, target: str, trajectory: Tensor) -> NDArray[np.uint8]:
        """RGB uint8 (F, h, w, 3) of an edit at working size, not written."""
        config, backbone = self.config, self.backbone
        scene = editing.Scene(
            backbone, self.prompt, trajectory, backbone.levels(config.edit.steps), self.view
        )
        pixels = self.mask()
        mask = None if pixels is None else self.latent_mask(pixels)
        with self.reporter.task(f"edit “{target}”", config.edit.steps) as progress:
            latents = editing.edit(
                scene, target, config, self.shift(target), mask, lambda done, _: progress(done, "")
            )
        frames = self.prepared.unpad(backbone.decode(latents))
        if pixels is not None:
            # Outside the person's mask the pixels are the source's own, not the autoencoder's.
            keep = pixels[..., None]
            frames = np.rint(frames * keep + self.prepared.frames * (1 - keep)).astype(np.uint8)
        return frames

    def evaluate(self, name: str) -> evaluating.Figures:
        """Figures of a finished edit stage, by the mask it was made with."""
        facts = self.run.facts(name)
        kept = load_file(self.run.folder / facts["frames"])
        mask = kept["mask"].numpy() if "mask" in kept else None
        return evaluating.evaluate(
            kept["frames"].numpy(), facts["target"], self.scorer, self.prepared.frames, self.prompt, mask
        )

    def evaluate_run(self) -> list[dict[str, Any]]:
        """Figures of every finished edit of the run; noted in ``metrics.json`` by the caller.

        An edit whose frames are damaged is left out, which is said.
        """
        rows = []
        for name in self.run.edits():
            facts = self.run.facts(name)
            if flaw := self.run.flaw_of(name, str(facts.get("frames", "its frames"))):
                self.reporter.warn(f"{flaw}: not scored; `ctxedit edit` with the same target makes it again")
                continue
            known = {k: facts[k] for k in ("target", "video", "settings") if k in facts}
            rows.append({**known, **self.evaluate(name).table()})
        if not rows:
            raise InputError(
                f"{self.run.folder} has no edits to score",
                "make one with `ctxedit edit --target TEXT`",
            )
        return rows

    # -- what can be said before it goes wrong ---------------------------------------------------------------

    def check_target(self, target: str) -> None:
        """Raise InputError for a target that gives an order, or that the text encoder cannot take whole."""
        if not target.strip():
            raise InputError("the target is empty", "describe what the edited clip should show")
        if not self.options.overwrite:
            check_describes(target, self.prompt)
        self.backbone.words(target)
        self.backbone.words(self.prompt)
        warn_of_unknown_words(self.backbone, target, self.reporter)


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
        text: what the image should show.
        config: model, seed, edit.steps, guidance.
        options: offline.
        reporter: who is told.
        count: pictures.
        adapter: a tuned context adapter (``adapter.safetensors`` of a run), or None.

    Returns:
        RGB uint8 (count, H, W, 3).
    """
    if not text.strip():
        raise InputError("the text is empty", "describe what the image should show")
    device = pick_device(config.device)
    backbone = open_backbone(
        locate(config.model, options.offline), device, pick_dtype(config.dtype, device), config.offload
    )
    warn_of_unknown_words(backbone, text, reporter)
    if config.control.kind != "none":
        reporter.warn("a picture from words has no clip to take a control from: the ControlNet is left out")
    size = config.clip.size
    if size and size % backbone.multiple:
        raise ConfigError(f"size {size} is no multiple of {backbone.multiple}", "choose one that is")
    shift = None
    if adapter is not None:
        network = ContextAdapter.load(adapter, device).eval().requires_grad_(False)
        if network.sizes["context_width"] != backbone.context_width:
            raise ConfigError(
                f"{adapter} was tuned on another model than {backbone.name}", "name its --model"
            )
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
        session.check_target(target)
    session.tune()
    session.invert()
    results = []
    for target in targets:
        result = session.edit(target)
        results.append(replace(result, figures=session.evaluate(session.edit_key(target)[0])))
    return results
