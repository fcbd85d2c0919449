"""The table of stages: each one's name, what its key depends on, how it is made and read, what it costs.

Running, resuming, the plan, bench and the API walk :data:`STAGES`; nothing else knows the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ctxedit import provenance
from ctxedit.config import Config
from ctxedit.editing import long, upscaling
from ctxedit.editing import round_trip as returning
from ctxedit.editing.costs import Costs
from ctxedit.editing.outside import at_source_size, outside
from ctxedit.editing.parts import Parts
from ctxedit.editing.request import Request
from ctxedit.editing.stage import Made, Stage, StageJob
from ctxedit.media.probe import probe
from ctxedit.media.temporary import atomic
from ctxedit.metrics import Metric, Networks
from ctxedit.metrics import evaluate as evaluating
from ctxedit.models.device import name_of, pick_dtype
from ctxedit.models.tensors import mapped_tensor, save_tensors
from ctxedit.models.weights import own_part
from ctxedit.prompts import plain
from ctxedit.provenance import to_text
from ctxedit.runs import Run, fingerprint, versions
from ctxedit.stages import caption as captioning
from ctxedit.stages import edit as editing
from ctxedit.stages import invert as inverting
from ctxedit.stages import report as reporting
from ctxedit.stages import tune as tuning
from ctxedit.stages.long import Stored
from ctxedit.stages.prepare import read_for_caption
from ctxedit.stages.tune import TuneStep

# -- caption -----------------------------------------------------------------------------------------------


def _make_caption(job: StageJob) -> Made:
    parts, config, request = job.parts, job.config, job.request
    dtype = pick_dtype(config.dtype, parts.device)
    if own_part(config.captioner, parts.own, "captioner") is None:
        parts.forget_loaded()
    model = parts.captioner(config.captioner, dtype)
    by_clip = captioning.asks_clip(config, parts.own is not None)
    scorer = None
    if by_clip and own_part(config.clip_model, parts.own, "clip"):
        scorer = parts.scorer
    elif by_clip:
        # Not the session's: a large one would hold its memory through all later stages.
        scorer = evaluating.make_scorer(config.clip_model, parts.own, parts.device, request.offline)
    with parts.reporter.task("caption", 1) as progress:
        clip = read_for_caption(request.clip, config.clip)
        text = captioning.caption(clip.frames, model, scorer)
        progress(1, "")
    parts.reporter.say(f"caption ({model.name}): {text}")
    return Made(text, facts={"text": text, "model": model.name, "by": "clip" if by_clip else "vote"})


# -- tune --------------------------------------------------------------------------------------------------


def _make_tuning(job: StageJob) -> Made:
    parts, config = job.parts, job.config.tune
    facts = {"prompt": job.prompt, "steps": config.steps}
    if not config.steps:
        return Made(facts=facts)
    shift, folder = parts.shift(job.prompt), _tuning_folder(job.folder / "tune", job.key)
    frames = tuning.frames_of_step(job.config)
    drawn = frames < job.config.clip.frames
    shift = shift and replace(shift, frames=frames)
    with parts.reporter.task("tune", config.steps) as progress:

        def report(row: TuneStep) -> None:
            note = f"loss {row.loss:.4f}" + (f", shift {row.shift:.3f}" if shift else "")
            progress(row.step, note)

        with parts.backbone.room_for([job.prompt]):
            condition = parts.backbone.condition([job.prompt])
        tensors = tuning.tune(
            parts.backbone, None if drawn else parts.latents, condition, parts.view, config,
            folder, job.request.tuning_seed, shift, parts.temporal, report, job.probe, parts.reporter.warn,
            parts.draw if drawn else None,
        )  # fmt: skip
    save_tensors(folder / "tuned.safetensors", tensors, {"prompt": job.prompt})
    return Made(files=("tune/tuned.safetensors",), facts=facts)


def _read_tuning(job: StageJob) -> None:
    """Put the tuned tensors into the networks."""
    parts, config = job.parts, job.config.tune
    if config.steps:
        parameters = tuning.trainable(parts.backbone, config, parts.shift(job.prompt), parts.temporal)
        tuning.load_tensors(parameters, load_file(job.folder / "tune" / "tuned.safetensors"))


def _tuning_folder(folder: Path, key: str) -> Path:
    """The folder of a tuning in progress; what another key left there is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "key"
    if not mark.exists() or mark.read_bytes() != key.encode():
        for name in ("state.pt", "log.jsonl"):
            (folder / name).unlink(missing_ok=True)
        with atomic(mark, True) as temporary:
            temporary.write_text(key)
    return folder


def _make_adapter(job: StageJob) -> Made:
    """Save the adapter as a file of its own, for use elsewhere; the tuned tensors contain it as well."""
    shift = job.parts.shift(job.prompt)
    assert shift is not None  # as ``applies`` says
    tuned = load_file(job.folder / "tune" / "tuned.safetensors")
    tensors = {k.removeprefix("adapter."): v for k, v in tuned.items() if k.startswith("adapter.")}
    # A preset that has an adapter but does not train it: its weights are those that it began with.
    shift.adapter.save(job.folder / "tune" / "adapter.safetensors", tensors or None, prompt=job.prompt)
    return Made(files=("tune/adapter.safetensors",))


# -- invert ------------------------------------------------------------------------------------------------

_TRAJECTORY = "inversion.safetensors"


def invert_now(parts: Parts, prompt: str, progress: inverting.Progress = inverting.no_progress) -> Tensor:
    """The clip inverted with the networks as they are: (S + 1, F, C, h, w), not kept.

    Of a long clip its first window.
    """
    config, backbone = parts.config.invert, parts.backbone
    text = prompt if config.prompt == "source" else ""
    with backbone.room_for([text]):
        condition = backbone.condition([text])
    return inverting.invert(
        backbone, parts.latents, condition, backbone.levels(config.steps), parts.view,
        parts.shift(text), config.fixed_point_iterations, progress, config.solver,
        parts.kept_source if _keeps_source(parts.config) else None,
    )  # fmt: skip


def _keeps_source(config: Config) -> bool:
    """Whether an inversion keeps the source's branch: it must evaluate the network as edits do."""
    return config.keep_source == "on" and not inverting.maps_of_level(config)


def _make_inversion(job: StageJob) -> Made:
    facts = {"steps": job.config.invert.steps}
    if job.parts.long:
        long.invert_to(job.folder / _TRAJECTORY, job.parts, job.prompt)
        return Made(_read_inversion(job), (_TRAJECTORY,), facts)
    total = inverting.network_passes(job.config)
    with job.parts.reporter.task("invert", total) as progress:
        trajectory = invert_now(job.parts, job.prompt, lambda done, _: progress(done, ""))
    save_tensors(job.folder / _TRAJECTORY, {"trajectory": trajectory})
    return Made(trajectory, (_TRAJECTORY,), facts)


def _clean(job: StageJob) -> Tensor | Stored:
    """Level 0 alone, where nothing is inverted."""
    return job.parts.stored_latents[None] if job.parts.long else job.parts.latents[None]


def _read_inversion(job: StageJob) -> Tensor | Stored:
    if job.parts.long:
        return long.mapped(job.folder / _TRAJECTORY, "trajectory")
    return load_file(job.folder / _TRAJECTORY)["trajectory"].to(job.parts.device)


# -- round trip --------------------------------------------------------------------------------------------

_BAD = (
    "edits will lose details of the clip: check that the prompt describes it, or try more --steps, "
    "--set invert.fixed_point_iterations=2, or tune again with --dtype float32"
)


def _make_round_trip(job: StageJob) -> Made:
    """Measure how well the clip comes back, and report it."""
    parts, config = job.parts, job.config
    text = job.prompt if config.invert.prompt == "source" else ""
    with parts.backbone.room_for([text]):
        condition = parts.backbone.condition([text])
    with parts.reporter.task("round trip", returning.network_passes(config)) as progress:
        found = returning.round_trip(
            parts.backbone, job.needed["invert"], condition, parts.backbone.levels(config.invert.steps),
            parts.view, parts.shift(text), config.round_trip == "whole", parts.prepared.padded,
            lambda done, _: progress(done, ""), config.edit.solver,
        )  # fmt: skip
    return Made(_tell_round_trip(job, found), facts=found.facts())


def _read_round_trip(job: StageJob) -> returning.RoundTrip:
    return _tell_round_trip(job, returning.RoundTrip.of_facts(Run(job.folder).facts(job.name)))


def _tell_round_trip(job: StageJob, found: returning.RoundTrip) -> returning.RoundTrip:
    if found.low:
        job.parts.reporter.warn(f"{found.summary()}: {_BAD}")
    else:
        job.parts.reporter.say(found.summary())
    return found


# -- edit --------------------------------------------------------------------------------------------------


def edited_frames(parts: Parts, prompt: str, target: str, trajectory: Tensor) -> NDArray[np.uint8]:
    """RGB uint8 (F, h, w, 3) of an edit at working size, not written."""
    config, backbone = parts.config, parts.backbone
    inverted = editing.InvertedClip(
        backbone, prompt, trajectory, backbone.levels(config.edit.steps), parts.view, parts.kept_source
    )
    pixels = parts.mask()
    mask = None if pixels is None else parts.latent_mask(pixels)
    with parts.reporter.task(f"edit “{target}”", config.edit.steps) as progress:
        latents = editing.edit(
            inverted, target, config, parts.shift(plain(target)), mask, lambda done, _: progress(done, "")
        )
    frames = parts.prepared.unpad(backbone.decode(latents))
    if pixels is not None:
        frames = outside(frames, parts.prepared.frames, pixels)
    return frames


def _make_frames(job: StageJob) -> Made:
    if job.parts.long:
        kept, trajectory = job.folder / job.frames_file, job.needed["invert"]
        return Made(long.edit_to(kept, job.parts, job.prompt, job.target, trajectory), (job.frames_file,))
    parts = job.parts
    frames = edited_frames(parts, job.prompt, job.target, job.needed["invert"])
    if parts.kept_source is not None and job.request.targets[-1:] == (job.target,):
        parts.kept_source.clear()
    tensors = {"frames": torch.from_numpy(frames)}
    if (mask := job.parts.mask()) is not None:
        tensors["mask"] = torch.tensor(mask)  # a copy: the mask of an image is read-only
    save_tensors(job.folder / job.frames_file, tensors)
    return Made(frames, (job.frames_file,))


def _read_frames(job: StageJob) -> NDArray[np.uint8]:
    return long.mapped(job.folder / job.frames_file, "frames")


def edit_files(request: Request, folder: Path, edit_name: str) -> reporting.OutputFiles:
    """Where an edit's results go; the edit of a photo is a photo."""
    suffix = ".png" if probe(request.clip).kind == "image" else ".mp4"
    return reporting.files_for(request.output or folder / "edits" / f"{edit_name}{suffix}")


def provenance_of(job: StageJob) -> dict[str, Any]:
    """How an edit is made, as it is embedded in its files; see :mod:`ctxedit.provenance`."""
    request, config = job.request, job.config
    return provenance.facts(
        "edit", config, request.preset, versions()["ctxedit"], target=job.target, prompt=job.prompt,
        source={"name": request.clip.name, "blake2b": fingerprint(request.clip)},
        tuning_seed=request.tuning_seed if request.tuning_seed != config.seed else None,
        output=request.output_options(),
    )  # fmt: skip


def metadata_of(job: StageJob) -> str | None:
    """The text embedded in an edit's files, from :func:`provenance_of`; None if they get none."""
    return to_text(provenance_of(job)) if job.request.metadata else None


def _make_edit(job: StageJob) -> Made:
    parts, request = job.parts, job.request
    files = edit_files(request, job.folder, job.edit_name)
    about, upscaled = provenance_of(job), job.needed["upscale"]
    frames = job.needed["frames"] if upscaled is None else upscaled
    full = at_source_size(parts, frames) if request.source_size else None

    def write(staged: list[Path]) -> None:
        if files.video.is_dir():
            staged[0].mkdir()  # a folder's name need not tell that it is one
        reporting.write(
            parts.prepared, frames, job.target, job.prompt, reporting.OutputFiles(*staged),
            source_size=request.source_size, full=full, audio=request.audio, overwrite=True,
            chroma=request.chroma, about=metadata_of(job),
            warn=parts.reporter.warn,
        )  # fmt: skip

    settings = {"seed": about["seed"], **about["settings"], **about["output"]}
    facts = {
        "target": job.target, "video": str(files.video.resolve()), "frames": job.frames_file,
        "device": name_of(parts.device), "dtype": str(parts.backbone.dtype).split(".")[-1],
        "settings": {name: value for name, value in settings.items() if name != "output"},
    }  # fmt: skip
    return Made(files, (job.frames_file,), facts, (files.video, files.side_by_side, files.sheet), write)


def _make_figures(job: StageJob) -> Made:
    return Made(figures(job.parts, job.folder / job.frames_file, job.target, job.prompt))


def figures(
    parts: Parts,
    kept: Path,
    target: str,
    prompt: str,
    chosen: Sequence[Metric] | None = None,
    networks: Networks | None = None,
) -> evaluating.Figures:
    """Scores of an edit whose frames are stored, with its mask; by default the usual ones."""
    return evaluating.evaluate(
        long.mapped(kept, "frames"), plain(target), networks or Networks(parts.scorer),
        parts.prepared.frames, prompt, mapped_tensor(kept, "mask"), chosen,
    )  # fmt: skip


def _nothing(job: StageJob) -> None:
    """There is nothing to read."""


STAGES: tuple[Stage, ...] = (
    Stage(
        "caption", lambda keys, prompt, target: keys.caption(), _make_caption, _nothing,
        peak=Costs.captioning,
    ),
    Stage(
        "tune", lambda keys, prompt, target: keys.tune(prompt), _make_tuning, _read_tuning,
        again="the clip is tuned on",
        passes=lambda config, prompt, target, kept: tuning.network_passes(config.tune),
        peak=Costs.tuning, disk=Costs.tuning_disk,
    ),
    Stage(
        "adapter", lambda keys, prompt, target: keys.tune(prompt), _make_adapter, _nothing, ("tune",),
        again="the adapter is saved", listed=False,
        applies=lambda config: bool(config.tune.steps) and config.adapter.enabled,
    ),
    Stage(
        "invert", lambda keys, prompt, target: keys.invert(prompt), _make_inversion, _read_inversion,
        ("tune",), again="the clip is inverted",
        applies=lambda config: config.edit.start != "noise", absent=_clean,
        passes=lambda config, prompt, target, kept: inverting.network_passes(config),
        keeps_source=lambda config, prompt, target: _keeps_source(config),
        peak=Costs.inverting, disk=Costs.inverting_disk,
    ),
    Stage(
        "round trip", lambda keys, prompt, target: keys.round_trip(prompt),
        _make_round_trip, _read_round_trip, ("tune", "invert"), again="the round trip is measured",
        applies=lambda config: returning.network_passes(config) > 0,
        passes=lambda config, prompt, target, kept: returning.network_passes(config), peak=Costs.inverting,
    ),
    Stage(
        "frames", lambda keys, prompt, target: keys.frames(prompt, target), _make_frames, _read_frames,
        ("tune", "invert"), again="the edit is sampled", each_target=True, listed=False,
        passes=editing.network_passes, keeps_source=editing.keeps_whole_source, peak=Costs.editing,
    ),
    Stage(
        "upscale", lambda keys, prompt, target: keys.upscale(prompt, target), upscaling.make, upscaling.read,
        ("frames",), again="the edit is upscaled", each_target=True, optional=True,
        applies=lambda config: config.upscale.scale > 1,
        passes=lambda config, prompt, target, kept: upscaling.network_passes(config),
        peak=Costs.upscaling, disk=Costs.upscaling_disk,
    ),
    Stage(
        "edit", lambda keys, prompt, target: keys.edit(prompt, target), _make_edit,
        lambda job: edit_files(job.request, job.folder, job.edit_name),
        ("frames", "upscale"),
        again="the edit's files are written", each_target=True, shows=("frames",),
        peak=Costs.writing, disk=Costs.editing_disk,
    ),
    Stage(
        "evaluate", lambda keys, prompt, target: keys.edit(prompt, target), _make_figures, _nothing,
        ("edit",), each_target=True, keeps=False, peak=Costs.evaluating,
    ),
)  # fmt: skip

_BY_NAME = {stage.name: stage for stage in STAGES}


def stage_named(name: str) -> Stage:
    """The stage of this name."""
    return _BY_NAME[name]


def up_to(last: str) -> tuple[Stage, ...]:
    """The stages up to ``last``, in order."""
    return STAGES[: STAGES.index(stage_named(last)) + 1]
