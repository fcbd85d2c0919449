"""The public Python API: seven verbs over the session. ``import ctxedit`` offers them lazily.

Settings come from a preset, ``CTXEDIT_*`` variables and the ``config`` argument, in rising precedence;
``config`` is a nested table such as ``{"edit": {"guidance": 5.0}}``, or a whole :class:`Config`, which is
taken as it is. Every function raises the errors of :mod:`ctxedit.errors`, and checks what it can before it
loads weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ctxedit.api_scores import evaluate as evaluate
from ctxedit.api_scores import evaluate_run as evaluate_run
from ctxedit.api_settings import PathLike, Settings, fitted, opened_run, settings
from ctxedit.config import Config
from ctxedit.editing import captioning, plan, text_to_image
from ctxedit.editing.rebase import rebased as rebased
from ctxedit.editing.reporter import Reporter
from ctxedit.editing.request import Request
from ctxedit.editing.session import EditResult, Session
from ctxedit.errors import ConfigError, InputError
from ctxedit.media.arrays import ClipLike, clip_path, mask_path
from ctxedit.metrics.evaluate import Figures
from ctxedit.metrics_file import plain_figures as plain_figures
from ctxedit.metrics_file import write_metrics as write_metrics
from ctxedit.notebook import default_reporter, quietly
from ctxedit.prompts import check_text
from ctxedit.runs import DEFAULT_ROOT, Run
from ctxedit.tables import DEFAULT_PRESET

__all__ = [
    "Config", "EditResult", "Figures", "Reporter", "Run", "caption", "edit", "evaluate", "evaluate_run",
    "generate", "run", "settings", "tune",
]  # fmt: skip

#: Where clips and masks that came as arrays are kept, in the folder for runs.
_INPUTS = "inputs"


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
            path, fitted(path, settings(preset, config), config, teller), preset, offline=offline,
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
    """Tune on one clip; finished work is reused, and an interrupted tuning resumes.

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
        path, fitted(path, settings(preset, config), config, teller), preset, prompt=prompt,
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
    if not isinstance(target, Iterable) or isinstance(target, bytes):
        check_text(target, "target")
    targets = (target,) if isinstance(target, str) else tuple(target)
    if not targets or (output is not None and len(targets) > 1):
        raise ConfigError(
            "no target" if not targets else f"output is given, but there are {len(targets)} targets",
            "give at least one target, and only one if output is given",
        )
    teller, inputs = reporter or default_reporter(), Path(runs) / _INPUTS
    path = clip_path(clip, inputs)
    request = Request(
        path, fitted(path, settings(preset, config), config, teller), preset, prompt, targets,
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
    opened = opened_run(run)
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
    text: str | Mapping[str, float],
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
        text: what the images should show; or several prompts with weights, which guide together:
            ``{"a tiger on the beach": 1.0, "snow": 0.6, "people": -0.3}``. Several use no context adapter.
        preset, config: as for :func:`settings`; ``clip.size`` is the side, 0 the model's own.
        count: pictures.
        adapter: file of a context adapter; True is the model's own, if it has one, False none.
        offline, reporter: as for :func:`caption`.

    Raises:
        InputError: the text is empty, too long or no text. ConfigError: settings, or a count below 1.
    """
    if not isinstance(text, str | Mapping):
        raise InputError(
            f"the text is {type(text).__name__}", "give a str, or a dict of prompts with weights"
        )
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"count = {count!r}", "it must be a whole number, at least 1")
    chosen = settings(preset, config)
    single = isinstance(text, str) or len(text) == 1
    file = text_to_image.own_adapter(chosen) if adapter is True and single else None
    if not isinstance(adapter, bool):
        file = Path(adapter)
    return text_to_image.generate(text, chosen, offline, reporter or default_reporter(), count, file)
