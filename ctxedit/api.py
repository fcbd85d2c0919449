"""The public Python API: seven verbs over the session. ``import ctxedit`` offers them lazily.

Settings come from a preset, ``CTXEDIT_*`` variables and the ``config`` argument, in rising precedence;
``config`` is a nested table such as ``{"edit": {"guidance": 5.0}}``, or a whole :class:`Config`, which is
taken as it is. Every function raises the errors of :mod:`ctxedit.errors`, and checks what it can before it
loads weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ctxedit.config import Config, environment, load
from ctxedit.editing import captioning, plan, text_to_image
from ctxedit.editing.rebase import rebased as rebased
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import EditResult, Session
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.arrays import ClipLike, clip_path, mask_path
from ctxedit.media.sources import check_exists
from ctxedit.media.temporary import check_writable
from ctxedit.metrics import Edit, Networks, compare
from ctxedit.metrics import evaluate as evaluating
from ctxedit.metrics.evaluate import Figures
from ctxedit.metrics_file import plain_figures as plain_figures
from ctxedit.metrics_file import write_metrics as write_metrics
from ctxedit.models.device import pick_device, pick_dtype
from ctxedit.models.weights import is_half, locate, own_folder
from ctxedit.notebook import default_reporter, quietly
from ctxedit.runs import DEFAULT_ROOT, Run
from ctxedit.stages.prepare import fit_span
from ctxedit.tables import DEFAULT_PRESET

__all__ = [
    "Config", "EditResult", "Figures", "Reporter", "Run", "caption", "edit", "evaluate", "evaluate_run",
    "generate", "run", "settings", "tune",
]  # fmt: skip

PathLike = str | Path
#: Where clips and masks that came as arrays are kept, in the folder for runs.
_INPUTS = "inputs"
Settings = Config | Mapping[str, Any] | None


def settings(preset: str = DEFAULT_PRESET, config: Settings = None) -> Config:
    """All settings: a preset with ``config`` laid over it.

    Args:
        preset: a preset's name, or the path of a TOML file.
        config: a nested table, or a :class:`Config` that is taken as it is.

    Raises:
        ConfigError: unknown preset, key or value.
    """
    return config if isinstance(config, Config) else load(preset, flags=config)


def _fitted(clip: Path, chosen: Config, given: Settings, teller: Reporter) -> Config:
    """Settings whose frames the clip has, where the caller left their number to the preset."""
    if isinstance(given, Config):
        return chosen
    named = {**(given or {}).get("clip", {}), **environment(os.environ).get("clip", {})}
    span, note = fit_span(check_exists(clip), chosen.clip, named)
    if note is not None:
        teller.say(note)
    return dataclasses.replace(chosen, clip=span)


@quietly
def caption(
    clip: ClipLike,
    *,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    lavis_python: PathLike | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> str:
    """Say in one sentence what a clip shows: BLIP-2 on five of its frames, then one caption for all.

    Args:
        clip: a video, GIF, image or folder of images; or frames, RGB uint8 (F, H, W, 3) or PIL images.
            ``config``'s ``clip`` table says which frames.
        preset, config: as for :func:`settings`; ``captioner`` names the checkpoint, ``caption_by``
            says how one caption is chosen.
        lavis_python: LAVIS's interpreter, for ``captioner = "lavis"``.
        offline: use the hub's cache only.
        reporter: receives messages and progress; None shows them in a notebook and nowhere else.

    Raises:
        InputError, WeightsError, ConfigError, ResourceError.
    """
    teller = reporter or default_reporter()
    with TemporaryDirectory(prefix="ctxedit-") as folder:
        path = clip_path(clip, Path(folder))
        request = Request(
            path, _fitted(path, settings(preset, config), config, teller), preset, offline=offline,
            lavis_python=Path(lavis_python) if lavis_python else None,
        )  # fmt: skip
        return captioning.caption(request, teller)


@quietly
def tune(
    clip: ClipLike,
    prompt: str | None = None,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    any_footage: bool = False,
    runs: PathLike = DEFAULT_ROOT,
    lavis_python: PathLike | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Tune on one clip; nothing is done twice, and a tuning that was killed goes on.

    Args:
        clip: as for :func:`caption`. Frames are kept as PNGs in ``runs``, at 8 frames a second.
        prompt: what it shows; None captions it.
        preset, config: as for :func:`settings`.
        any_footage: tune the built-in models on footage that they do not know, with a warning.
        runs: folder for runs.
        lavis_python, offline, reporter: as for :func:`caption`.

    Raises:
        InputError: also for footage that the built-in models do not know, unless ``any_footage``.

    Returns:
        The run, for :func:`edit`; its ``folder`` holds all of it.
    """
    teller, path = reporter or default_reporter(), clip_path(clip, Path(runs) / _INPUTS)
    request = Request(
        path, _fitted(path, settings(preset, config), config, teller), preset, prompt=prompt,
        any_footage=any_footage, offline=offline, runs=Path(runs),
        lavis_python=Path(lavis_python) if lavis_python else None,
    )  # fmt: skip
    plan.make(request, last="tune").check()
    with Session(request, teller) as session:
        return session.tune()


@overload
def run(clip: ClipLike, target: str, *args: Any, **more: Any) -> EditResult: ...
@overload
def run(clip: ClipLike, target: Sequence[str], *args: Any, **more: Any) -> list[EditResult]: ...
@quietly
def run(
    clip: ClipLike,
    target: str | Sequence[str],
    prompt: str | None = None,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    mask: ClipLike | None = None,
    output: PathLike | None = None,
    source_size: bool = False,
    audio: bool = True,
    chroma: str = "420",
    metadata: bool = True,
    overwrite: bool = False,
    any_footage: bool = False,
    runs: PathLike = DEFAULT_ROOT,
    lavis_python: PathLike | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> EditResult | list[EditResult]:
    """All stages: caption, tune, invert, edit and score. One tuning and one inversion serve all targets.

    Args:
        clip, prompt, preset, config, any_footage, runs: as for :func:`tune`.
        target: target prompt, what the edited clip should show; or several.
        mask, output, source_size, audio, chroma, metadata, overwrite: as for :func:`edit`; ``output`` for a
            single target alone.
        lavis_python, offline, reporter: as for :func:`caption`.

    Returns:
        The edit with its figures, or a list of them for a sequence of targets. The figures are written to
        the run's ``metrics.json`` as well.

    Raises:
        As :func:`tune` and :func:`edit`.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    if not targets or (output is not None and len(targets) > 1):
        raise ConfigError(
            "no target" if not targets else f"output is given, and there are {len(targets)} targets",
            "give at least one target, and only one if output is given",
        )
    teller, inputs = reporter or default_reporter(), Path(runs) / _INPUTS
    path = clip_path(clip, inputs)
    request = Request(
        path, _fitted(path, settings(preset, config), config, teller), preset, prompt, targets,
        None if mask is None else mask_path(mask, inputs), Path(output) if output else None, source_size,
        audio, chroma, metadata, overwrite, any_footage, offline=offline, runs=Path(runs),
        lavis_python=Path(lavis_python) if lavis_python else None,
    )  # fmt: skip
    plan.make(request).check()
    with Session(request, teller) as session:
        results = session.edit_all(targets)
        write_metrics(session.run, [_row(one, one.figures) for one in results if one.figures is not None])
    return results[0] if isinstance(target, str) else results


def _row(result: EditResult, figures: Figures) -> dict[str, Any]:
    """An edit's row in ``metrics.json``."""
    video = str(result.files.video.resolve())
    return {"target": result.target, "video": video, **plain_figures(figures.table())}


@quietly
def edit(
    run: Run | PathLike,
    target: str,
    config: Mapping[str, Any] | None = None,
    *,
    mask: ClipLike | None = None,
    output: PathLike | None = None,
    source_size: bool = False,
    audio: bool = True,
    chroma: str = "420",
    metadata: bool = True,
    overwrite: bool = False,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> EditResult:
    """Edit a tuned clip: inverts it, or reuses the inversion, and samples towards the target.

    Args:
        run: what :func:`tune` gave, or a run folder.
        target: target prompt, what the edited clip should show.
        config: a table over the run's own settings; tables ``edit``, ``fusion``, ``invert``, and ``seed``.
        mask: image, video or folder, white may change; or an array (F, H, W) or (H, W), bool or uint8.
        output: the edited file; None is inside the run folder.
        source_size: write at the source's size instead of the working size.
        audio: copy the source's sound.
        overwrite: replace existing files and redo a finished edit.
        metadata: say inside the files how they were made.
        chroma: of H.264: "420", or "444", which keeps odd sizes but plays in few players.
        offline, reporter: as for :func:`caption`.

    Returns:
        The edit: ``files.video``, ``files.side_by_side``, ``files.sheet``, its ``frames`` as an array and
        ``images`` as PIL images, and whether it was there already.

    Raises:
        ConfigError: a setting that tuning depends on was changed.
    """
    opened = run if isinstance(run, Run) else Run(Path(run))
    teller = reporter or default_reporter()
    request = Request.of_run(
        opened, rebased(opened, config or {}), teller.warn, targets=(target,),
        mask=None if mask is None else mask_path(mask, opened.folder.parent / _INPUTS),
        output=Path(output) if output else None,
        source_size=source_size, audio=audio, chroma=chroma, metadata=metadata, overwrite=overwrite,
        offline=offline,
    )  # fmt: skip
    plan.make(request, "edit").check()
    with Session(request, teller) as session:
        return session.edit(target)


@quietly
def generate(
    text: str,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    count: int = 1,
    adapter: PathLike | bool = True,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> NDArray[np.uint8]:
    """Text to image: RGB uint8 (count, H, W, 3), on the same schedule, sampler and guidance as edits.

    Args:
        text: what the images should show.
        preset, config: as for :func:`settings`; ``clip.size`` is the side, 0 the model's own.
        count: pictures.
        adapter: file of a context adapter; True is the model's own, if it has one, False none.
        offline, reporter: as for :func:`caption`.
    """
    chosen = settings(preset, config)
    file = text_to_image.own_adapter(chosen) if adapter is True else None
    if not isinstance(adapter, bool):
        file = Path(adapter)
    return text_to_image.generate(text, chosen, offline, reporter or default_reporter(), count, file)


@quietly
def evaluate(
    video: ClipLike,
    prompt: str,
    preset: str = DEFAULT_PRESET,
    config: Settings = None,
    *,
    source: ClipLike | None = None,
    source_prompt: str | None = None,
    mask: ClipLike | None = None,
    metrics: Sequence[str] | None = None,
    weights: Mapping[str, str] | None = None,
    frames: int | None = None,
    start: int = 0,
    stride: int = 1,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> Figures:
    """Score any clip against a prompt and, where it is given, against the source that it was made from.

    Without a source the result holds CLIP-text, and CLIP-temp over all pairs and over consecutive frames;
    with one, every usual metric that the inputs allow.

    Args:
        video: as the clip of :func:`caption`; so is ``source``.
        prompt: what it should show.
        preset, config: as for :func:`settings`; ``clip_model`` names the CLIP.
        source: the clip that ``video`` is an edit of; it is resized to the edit's size.
        source_prompt: what the source shows.
        mask: as for :func:`edit`, beside the source.
        metrics: keys of the metrics to compute instead of the usual ones.
        weights: paths or hub ids of the networks of metrics that have their own, by the metric's key.
        frames: how many; None is every one from ``start`` on, ``stride`` apart.
        start, stride: as for clips; with a source, which of its frames the edit's were made from.
        offline, reporter: as for :func:`caption`.

    Raises:
        InputError: an unreadable clip, one of too many frames to hold at once, or a source of another shape
            or with too few frames.
        ConfigError: an unknown metric, or one that needs what is not given.
        WeightsError: a metric's network that is not there.
    """
    chosen, teller = settings(preset, config), reporter or default_reporter()
    if not prompt.strip():
        raise InputError("the prompt is empty", "say what the clip should show")
    inputs = {"target": prompt, "source": source, "source_prompt": source_prompt, "mask": mask}
    given = {name for name, value in inputs.items() if value is not None}
    wanted = evaluating.chosen_for("run" if source is None else "eval", metrics, given)
    material = _material(video, source, mask, (frames, start, stride), teller)
    device = pick_device(chosen.device)
    scorer = evaluating.make_scorer(chosen.clip_model, own_folder(chosen.model), device, offline)
    networks = Networks(scorer, device, offline, weights)
    evaluating.prepare(wanted, networks)
    with teller.task("evaluate", 1) as progress:
        edit = Edit(material.frames, networks, prompt, material.source, source_prompt, material.mask)
        figures = Figures(scorer.name, evaluating.scores(edit, wanted))
        progress(1, "")
    return figures


def _material(
    video: ClipLike,
    source: ClipLike | None,
    mask: ClipLike | None,
    span: tuple[int | None, int, int],
    teller: Reporter,
) -> compare.Material:
    """What is scored: read here, so that arrays need files no longer than that."""
    with TemporaryDirectory(prefix="ctxedit-") as folder:
        path = clip_path(video, Path(folder), "video")
        if source is None:
            return compare.Material(compare.read_video(path, *span))
        mask_file = None if mask is None else mask_path(mask, Path(folder))
        return compare.read_pair(
            path, clip_path(source, Path(folder), "source"), mask_file, *span, teller.say
        )


@quietly
def evaluate_run(
    run: Run | PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    mask: PathLike | None = None,
    metrics: Sequence[str] | None = None,
    weights: Mapping[str, str] | None = None,
    offline: bool = False,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Figures of every edit of a run, one table each; written to the run's ``metrics.json`` as well.

    An infinite PSNR (an edit equal to its source) is the text ``"inf"``: JSON has no infinity, and null means
    that a figure does not apply.

    Args:
        run: a run, or its folder.
        config: a table over the run's settings; ``clip_model`` names the CLIP.
        mask: fidelity is taken outside it.
        metrics: keys of the metrics to compute instead of the usual ones.
        weights: as for :func:`evaluate`.
        offline, reporter: as for :func:`caption`.
    """
    opened = run if isinstance(run, Run) else Run(Path(run))
    chosen = rebased(opened, config or {})
    dtype = pick_dtype(chosen.dtype, pick_device(chosen.device))
    locate(chosen.model, offline, is_half(dtype))
    wanted = evaluating.chosen_for("run", metrics, ("target", "source", "source_prompt", "mask"))
    check_writable(opened.folder / "metrics.json", True)
    teller = reporter or default_reporter()
    request = Request.of_run(
        opened, chosen, teller.warn, mask=Path(mask) if mask else None, offline=offline
    )  # fmt: skip
    with Session(request, teller) as session, teller.task("evaluate", 1) as progress:
        rows = [plain_figures(row) for row in session.evaluate_run(wanted, weights)]
        progress(1, "")
    write_metrics(opened, rows)
    return rows
