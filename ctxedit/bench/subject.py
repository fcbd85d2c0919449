"""Methods, clips and the keys of results; shared by ``bench`` and ``batch``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctxedit.bench.external import External
from ctxedit.bench.figures import VERSION
from ctxedit.bench.figures import identity as measured_by
from ctxedit.bench.listing import Clip, Target
from ctxedit.config import Config
from ctxedit.editing.keys import Keys
from ctxedit.editing.request import Request
from ctxedit.models.weights import identity, judge_identity, own_folder, part_identity
from ctxedit.runs import fingerprint, key_of
from ctxedit.storage import Store

#: References beside the methods: the unedited clip, and the true edit if there is one.
SOURCE, IDEAL = "source", "ideal"
REFERENCES = (SOURCE, IDEAL)


@dataclass(frozen=True)
class Method:
    """A preset with its settings; ``label`` is its name in the tables."""

    label: str
    preset: str
    config: Config


@dataclass(frozen=True)
class Bench:
    """A comparison; a batch is one with a single method and without references.

    Attributes:
        out: the bench's folder: results, run folders, tables, page.
        clips, methods: each method runs on each target of each clip.
        overwrite: redo finished edits (their tuning and inversion are kept).
        offline: do not contact the hub.
        sources: the list and the files of settings; no output may overwrite them.
        metrics: keys of metrics besides the usual ones.
        references: measure the unedited clip and the true edit as well.
        externals: other methods' videos to measure as well.
        results: folder, relative to ``out``, that receives a copy of each edit with its audio; None leaves
            the edits, without audio, in their run folders.
        store: additionally receives results, videos and report; workers on other machines then do not need
            access to ``out``, and each keeps its own run folders.
    """

    out: Path
    clips: tuple[Clip, ...]
    methods: tuple[Method, ...]
    overwrite: bool = False
    offline: bool = False
    sources: tuple[Path, ...] = ()
    metrics: tuple[str, ...] = ()
    references: bool = True
    externals: tuple[External, ...] = ()
    results: str | None = None
    store: Store | None = None

    def request(self, clip: Clip, method: Method, targets: Sequence[str] = ()) -> Request:
        """The request of one method on one clip; its run folder is in the bench's."""
        return Request(
            clip.path, settings_for(clip, method), method.preset, prompt=clip.prompt or None,
            targets=tuple(targets), audio=self.results is not None, overwrite=self.overwrite,
            offline=self.offline, runs=self.out / "runs",
        )  # fmt: skip

    def key(self, clip: Clip, target: Target, method: str, config: Config) -> str:
        """The key of an edit: everything that its pixels and figures depend on."""
        files = [
            None if f is None else fingerprint(f) for f in (clip.control, mask_of(clip, target), target.ideal)
        ]
        wanted: tuple[Any, ...] = (target.prompt, target.kind, target.expect)
        if target.composition is not None:
            judged = judge_identity("composition-judge")
            wanted += (target.composition.to_table(), target.changed, judged)
        scorer = part_identity(config.clip_model, own_folder(config.model), "clip")
        weights = (identity(config.model), scorer, judge_identity())
        clip_of = (fingerprint(clip.path), clip.name, clip.prompt)
        more: list[Any] = measured_by(self.metrics)  # nothing for the built-in metrics
        keys = Keys(Request(clip.path, config, offline=self.offline))
        if not clip.prompt:
            more.append(keys.caption())
        more += keys.other_files()
        if self.results is not None:
            more.append(self.results)
        return key_of(VERSION, method, config, weights, clip_of, wanted, files, *([more] if more else []))


def settings_for(clip: Clip, method: Method) -> Config:
    """A method's settings for a clip: its own map where the method takes one, and the frames that it has."""
    config = method.config if clip.span is None else replace(method.config, clip=clip.span)
    if config.control.kind == "video" and clip.control is not None:
        config = replace(config, control=replace(config.control, map=str(clip.control.absolute())))
    return config


def edits(bench: Bench) -> Iterator[tuple[Clip, Method, Target, str]]:
    """Every edit of a bench with its key, in order."""
    for clip in bench.clips:
        for method in bench.methods:
            settings = settings_for(clip, method)
            for target in clip.targets:
                yield clip, method, target, bench.key(clip, target, method.label, settings)


def references(bench: Bench, clip: Clip) -> Iterator[tuple[Target, str, str]]:
    """What is measured but not generated: target, which (a reference or an external method), key."""
    for target in clip.targets if bench.references else ():
        for which in REFERENCES:
            if which == SOURCE or target.ideal is not None:
                yield target, which, _reference_key(bench, clip, target, which)
        for one in bench.externals:
            video = one.find(clip, target)
            seen = "none" if video is None else fingerprint(video)
            yield target, one.label, key_of(_reference_key(bench, clip, target, one.label), seen)


def _reference_key(bench: Bench, clip: Clip, target: Target, which: str) -> str:
    """References are read in the same way as the first method reads the clip."""
    config = bench.methods[0].config
    seen = replace(Config(), clip=config.clip, model=config.model, clip_model=config.clip_model)
    return bench.key(clip, target, which, seen)


def mask_of(clip: Clip, target: Target) -> Path | None:
    """The mask of a target, or else of its clip."""
    return target.mask or clip.mask
