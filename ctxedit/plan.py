"""What a command is about to do, found out without loading a weight; everything that can be checked is.

The order of the checks is what a person can mend fastest first: words, files, sizes, models, memory, disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ctxedit import footprint, needs, request
from ctxedit.config import Config
from ctxedit.costs import Costs, captioner_weight, clip_weight
from ctxedit.errors import ConfigError, InputError, OutputError, ResourceError
from ctxedit.media.beside import read_beside
from ctxedit.media.geometry import Fit, plan_fit
from ctxedit.media.mask import read_mask
from ctxedit.media.memory import reading_bytes, writing_bytes
from ctxedit.media.probe import probe
from ctxedit.media.read import Clip, span_of
from ctxedit.media.temporary import check_writable
from ctxedit.media.write import check_output, even_note, holds_audio
from ctxedit.models.adapter import ContextAdapter
from ctxedit.models.backbones import builtin_vocabulary, family_of
from ctxedit.models.control import Denoiser, check_settings, locate_control
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.sizes import Sizes, Weight, weigh
from ctxedit.models.weights import Checkpoint, locate, own_folder
from ctxedit.naming import is_own
from ctxedit.pipeline import Session
from ctxedit.prompts import check_syntax
from ctxedit.runs import Run
from ctxedit.stages.caption import asks_clip
from ctxedit.stages.heatmaps import files_for as heatmaps_for
from ctxedit.stages.prepare import captioned_size, read_for_caption, read_working
from ctxedit.stages.report import files_for, is_image
from ctxedit.stages.wording import check_describes

STAGES = ("caption", "tune", "invert", "edit", "evaluate")
GIB = 1 << 30
_LESS = "try fewer --frames, a smaller --size, --dtype bfloat16, or --set tune.checkpointing=true"


@dataclass(frozen=True)
class Stage:
    """One stage: whether it was done before, passes of the network over the clip, peak memory (estimated).

    ``control_evaluations`` are passes of the ControlNet beside it.
    """

    name: str
    reused: bool
    evaluations: int
    peak_bytes: int
    control_evaluations: int = 0


@dataclass(frozen=True)
class Plan:
    """Sizes are (width, height) in pixels; ``run`` is None while there is no run folder yet.

    ``control`` says what the ControlNet is shown, and which one it is; None without one. ``reading_bytes``
    and ``writing_bytes`` are peaks in main memory (estimated); ``notes`` is what is done to the clip and to
    the output that a person should know.
    """

    clip: str
    model: str
    parameters: int
    device: str
    dtype: str
    seed: int
    run: str | None
    prompt: str | None
    targets: tuple[str, ...]
    frames: int
    fps: Fraction
    source_size: tuple[int, int]
    working_size: tuple[int, int]
    padded_size: tuple[int, int]
    stages: tuple[Stage, ...]
    memory_available: int
    disk_free: int
    disk_needed: int
    control: str | None = None
    reading_bytes: int = 0
    writing_bytes: int = 0
    notes: tuple[str, ...] = ()

    def table(self) -> dict[str, Any]:
        """As plain values for JSON; the frame rate is a fraction in text."""
        return {**asdict(self), "fps": str(self.fps)}

    def check(self) -> None:
        """Raises ResourceError when a stage wants more memory than there is, OutputError for the disk."""
        check_memory([s for s in self.stages if not s.reused], self.memory_available)
        if any(stage.name.startswith("edit ") and not stage.reused for stage in self.stages):
            check_handling("writing the edit", self.writing_bytes)
        if self.disk_needed > self.disk_free:
            raise OutputError(
                f"about {self.disk_needed / GIB:.2f} GiB are needed on the disk, "
                f"{self.disk_free / GIB:.2f} GiB are free",
                "free some, or choose another place with --runs",
            )


def check_memory(stages: Sequence[Stage], available: int) -> None:
    """Raises ResourceError, with the numbers, for the first stage that wants more than is available."""
    for stage in stages:
        if stage.peak_bytes > available:
            raise ResourceError(
                f"{stage.name} needs about {stage.peak_bytes / GIB:.1f} GiB of memory, "
                f"{available / GIB:.1f} GiB are available",
                _LESS,
            )


def make(
    session: Session, targets: Sequence[str] = (), last: str = "evaluate", heatmaps: bool = False
) -> Plan:
    """Check a session's inputs and say what its stages up to ``last`` will do. Errors as they would come."""
    config, options = session.config, session.options
    request.for_session(session, targets, heatmaps).check()
    if options.prompt is not None and not options.prompt.strip():
        raise InputError("the prompt is empty", "omit it to caption the clip")
    for target in targets:
        if not target.strip():
            raise InputError("the target is empty", "describe what the edited clip should show")
    for what, text in _texts(config, options.prompt, targets):
        check_syntax(text, what)
    check_settings(config.control, is_own(config.model))
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    info, span = probe(session.clip), config.clip
    timed = span_of(info, span.frames, span.start, span.stride)
    _check_outputs(session, timed.fps, targets, heatmaps)
    checkpoint = locate(config.model, options.offline)
    family = family_of(checkpoint)
    body = family.sizes(checkpoint)
    builtin_vocabulary(checkpoint.path)  # refuses a broken one
    needs.check_settings(config, body)
    fit = plan_fit(info.width, info.height, span.size or body.resolution, body.multiple)
    side = (fit.padded_height // body.factor, fit.padded_width // body.factor)
    needs.check_layers(config, body, side, heatmaps)
    reading = reading_bytes(info, span.frames, fit.width, fit.height)
    check_handling("reading the clip", reading)
    # The frames are read here once already: a damaged clip is noticed before minutes of work, not after.
    clip = read_working(session.clip, span, fit)
    if options.mask is not None:
        read_mask(options.mask, config.clip.frames, config.clip.start, config.clip.stride, fit)
    told, control = _control(config, checkpoint, body, fit, options.offline)
    family.check_prompts(checkpoint, [*targets, config.edit.negative_prompt, options.prompt or ""])
    run, prompt, reused = _reused(session, targets)
    if prompt is not None and not options.overwrite:
        for target in targets:
            check_describes(target, prompt)
    needs.check_words(config, prompt, targets)
    names = STAGES[: STAGES.index(last) + 1]
    if options.prompt is not None and "caption" in names:
        names = names[1:]
    costs = Costs(config, options.offline, checkpoint.own, body, fit, dtype, control)
    stages = []
    for name in names:
        for label in [f"edit “{t}”" for t in targets] if name == "edit" else [name]:
            done = label in reused
            passes = 0 if done else costs.evaluations(name)
            beside = passes if control.parameters else 0
            stages.append(Stage(label, done, passes, costs.peak(name, done), beside))
    root = run.folder if run else options.runs
    return Plan(
        str(session.clip), checkpoint.name, body.parameters, str(device), str(dtype).split(".")[-1],
        config.seed, str(run.folder) if run else None, prompt, tuple(targets), config.clip.frames, clip.fps,
        (info.width, info.height), (fit.width, fit.height), (fit.padded_width, fit.padded_height),
        tuple(stages), memory_available(device), disk_free(root),
        costs.disk([s.name for s in stages if not s.reused]),
        told, reading, *_written(session, fit, clip, targets),
    )  # fmt: skip


def _written(session: Session, fit: Fit, clip: Clip, targets: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Bytes that writing an edit takes, and what a person should know of the clip and of the output."""
    if not targets:
        return 0, clip.notes
    options, output = session.options, session.options.output or Path("edit.mp4")
    size = (fit.source_width, fit.source_height) if options.source_size else (fit.width, fit.height)
    note = even_note(output, *size, options.chroma)
    sound = clip.info.sound_note if options.audio and holds_audio(output) else None
    notes = (*clip.notes, *(said for said in (sound, note) if said is not None))
    return writing_bytes(output, session.config.clip.frames, *size), notes


def check_handling(what: str, needed: int) -> None:
    """Raises ResourceError, with the numbers, where main memory does not suffice for frames at hand."""
    available = memory_available(torch.device("cpu"))
    if needed > available:
        raise ResourceError(
            f"{what} needs about {needed / GIB:.1f} GiB of memory, {available / GIB:.1f} GiB are available",
            "take fewer --frames, or scale the clip down first: ffmpeg -i IN -vf scale=1920:-2 OUT.mp4",
        )


def _control(
    config: Config, checkpoint: Checkpoint, body: Sizes, fit: Fit, offline: bool
) -> tuple[str | None, Weight]:
    """What the ControlNet is shown, and its size; nothing of it is loaded, a map is read once."""
    control = config.control
    if control.kind == "none":
        return None, Weight()
    span = config.clip
    if control.kind == "video":
        read_beside(control.map, "control map", span.frames, span.start, span.stride, fit)
    denoiser = Denoiser(
        checkpoint.name, checkpoint.own, body.channels, body.layers, body.latent_channels,
        body.context_width, body.factor,
    )  # fmt: skip
    weight = weigh(locate_control(control, denoiser, offline))
    name = "beside the model" if control.model == "auto" and checkpoint.own else control.model
    shown = control.map or f"Canny edges ({control.low}, {control.high})"
    return f"{shown} to the ControlNet {name}, {weight.parameters / 1e6:.1f} M parameters", weight


def _texts(config: Config, prompt: str | None, targets: Sequence[str]) -> list[tuple[str, str]]:
    """All prompts, and what each is called."""
    negative = ("negative prompt", config.edit.negative_prompt)
    return [("prompt", prompt or ""), *(("target", target) for target in targets), negative]


def _check_outputs(session: Session, fps: Fraction, targets: Sequence[str], heatmaps: bool) -> None:
    options = session.options
    if options.output is None:
        folder = options.runs if session._run is None else session._run.folder
        check_writable(folder / ".ctxedit", True)
        return
    if len(targets) > 1:
        raise ConfigError(
            "--output names one file, and there are several targets",
            "leave it out: the run folder takes them",
        )
    files = files_for(options.output)
    maps = heatmaps_for(options.output)
    outputs, free = (files.video, files.side_by_side, files.sheet), options.overwrite
    if not free and targets and any(path.exists() for path in outputs):
        own = _own(session, targets[0], outputs)
    else:
        own = set()
    if is_image(options.output) and session.config.clip.frames == 1:
        check_image(options.output, free or files.video in own)
    else:
        check_output(options.output, fps, free or files.video in own)
    for path in outputs[1:]:
        check_writable(path, free or path in own)
    for path in (maps.sheet, maps.video) if heatmaps else ():
        check_writable(path, free)


def _own(session: Session, target: str, outputs: Sequence[Path]) -> set[Path]:
    """Those of the outputs that are there because this very edit was made before."""
    run, prompt, peek = _peek(session)
    if run is None or prompt is None or peek is None:
        return set()
    name, key = peek.edit_key(target)
    return {path for path in outputs if run.may_replace(name, key, path)}


def _reused(session: Session, targets: Sequence[str]) -> tuple[Run | None, str | None, set[str]]:
    """The run there is, the source prompt if it is known, and the stages that need not run again."""
    config, options = session.config, session.options
    run, prompt, peek = _peek(session)
    if run is None or peek is None:
        return run, prompt, set()
    done = {"caption"}
    if run.done("tune", peek.tune_key()):
        done.add("tune")
    if config.edit.start == "noise" or run.done("invert", peek.invert_key()):
        done.add("invert")
    for target in targets:
        name, key = peek.edit_key(target)
        if run.done(name, key) and not options.overwrite:
            done.add(f"edit “{target}”")
    return run, prompt, done


def _peek(session: Session) -> tuple[Run | None, str | None, Session | None]:
    """The run there is, the source prompt if it is known, and a session that says the keys.

    A copy that is told the prompt: it neither captions nor writes to the folder.
    """
    run, config, options = session._run, session.config, session.options
    run = run or Run.find(options.runs, session.clip, session.preset, session.identity)
    if run is None:
        return None, options.prompt, None
    known = run.facts("caption").get("text")
    if options.prompt is None and session._run is None and not run.done("caption", session.caption_key()):
        known = None
    prompt = options.prompt or known
    if prompt is None:
        return run, None, None
    peek = Session(session.clip, config, session.preset, options, None, run)
    peek.prompt = str(prompt)
    return run, str(prompt), peek


def memory_available(device: torch.device) -> int:
    """Bytes free on the device; on a CPU also within the container's limit, where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        room = int(limit) - int(used) + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no cgroup v2, or its limit is "max"
        return free
    return max(0, min(free, room))


def disk_free(place: Path) -> int:
    """Bytes free where ``place`` is or will be."""
    place = place.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def for_caption(clip: Path, config: Config, offline: bool, lavis_python: Path | None) -> dict[str, Any]:
    """Check what captioning needs, and say what it takes.

    Raises:
        ConfigError, InputError, WeightsError, ResourceError.
    """
    device = pick_device(config.device)
    width = pick_dtype(config.dtype, device).itemsize
    if config.captioner == "lavis" and lavis_python is None:
        raise ConfigError("the lavis captioner needs its own interpreter", "give --lavis-python PATH")
    info, span = probe(clip), config.clip
    span_of(info, span.frames, span.start, span.stride)  # enough frames?
    check_handling("reading the clip", reading_bytes(info, span.frames, *captioned_size(info)))
    read_for_caption(clip, span)
    own = own_folder(config.model)
    weight = captioner_weight(config, own, offline)
    peak = 2 * weight.parameters * width  # beams and images take less than the weights once more
    if by_clip := asks_clip(config, own is not None):
        peak += clip_weight(config, own, offline).parameters * 4
    check_memory([Stage("caption", False, 0, peak)], memory_available(device))
    return {
        "clip": str(clip),
        "frames": config.clip.frames,
        "captioner": config.captioner,
        "caption_by": "clip" if by_clip else "vote",
        "parameters": weight.parameters,
        "peak_bytes": peak,
        "device": str(device),
    }


def for_image(
    text: str, config: Config, offline: bool, output: Path, overwrite: bool, adapter: Path | None = None,
    sources: Sequence[Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Check what text to image needs, and say what it takes; sizes are (width, height).

    ``adapter`` and ``sources``, the files of the settings, are read: ``output`` may be none of them.

    Raises:
        ConfigError, InputError, WeightsError, ResourceError, OutputError.
    """
    request.for_image(output, config, adapter, sources).check()
    if adapter is not None:
        ContextAdapter.check(adapter)
    for what, words in _texts(config, text, ()):
        check_syntax(words, what)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    check_image(output, overwrite)
    checkpoint = locate(config.model, offline)
    family = family_of(checkpoint)
    body = family.sizes(checkpoint)
    builtin_vocabulary(checkpoint.path)  # refuses a broken one
    side = config.clip.size or body.resolution
    if side % body.multiple:
        near = max(body.multiple, round(side / body.multiple) * body.multiple)
        raise ConfigError(f"--size {side} is no multiple of {body.multiple}", f"take {near}")
    family.check_prompts(checkpoint, [text, config.edit.negative_prompt])
    latent = (side // body.factor, side // body.factor)
    lanes = 1 if config.edit.guidance == 1 else 2
    passing = footprint.forward_bytes(body, latent, lanes, 1, dtype.itemsize)
    decoding = footprint.autoencoder_bytes(body, latent, 1, dtype.itemsize)
    peak = body.parameters * dtype.itemsize + max(passing, decoding)
    check_memory([Stage("text to image", False, 0, peak)], memory_available(device))
    return {
        "image": str(output),
        "model": checkpoint.name,
        "size": (side, side),
        "evaluations": lanes * config.edit.steps,
        "peak_bytes": peak,
        "device": str(device),
        "seed": config.seed,
    }


def check_image(path: Path, overwrite: bool) -> None:
    """Raises ConfigError for a suffix that is no image's, OutputError for a place that cannot be written."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"):
        raise ConfigError(f"images are not written as {path.suffix or path.name}", "use .png, .jpg or .webp")
    check_writable(path, overwrite)
