"""Options that commands share, in groups, and the decorator that spreads them over a command's signature."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Clip = Annotated[Path, typer.Argument(help="Video, GIF, image or folder of images.", show_default=False)]


def _option(*names: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **more)


_SETTINGS, _CLIP, _METHOD, _OUTPUT, _TALK = "Settings", "Clip", "Method", "Output", "Talk"


@dataclass(frozen=True)
class Talk:
    """How a command speaks."""

    json: Annotated[bool, _option("--json", panel=_TALK, help="Print one JSON object.")] = False
    quiet: Annotated[bool, _option("--quiet", "-q", panel=_TALK, help="Say nothing but errors.")] = False


@dataclass(frozen=True)
class Base:
    """Where settings come from, and what every model needs to know."""

    preset: Annotated[
        str | None,
        _option(
            "--preset",
            panel=_SETTINGS,
            envvar="CTXEDIT_PRESET",
            help="A method: `ctxedit presets ls`. (contextdiff)",
        ),
    ] = None
    config: Annotated[
        Path | None,
        _option("--config", panel=_SETTINGS, metavar="FILE", help="TOML settings over the preset."),
    ] = None
    set: Annotated[
        list[str] | None,
        _option(
            "--set",
            panel=_SETTINGS,
            metavar="KEY=VALUE",
            help="Any setting, e.g. fusion.blend=self. Repeatable.",
        ),
    ] = None
    model: Annotated[
        str | None,
        _option(
            "--model", panel=_SETTINGS, help="builtin, sd14, sd15, sd21, hub id, folder or .safetensors."
        ),
    ] = None
    seed: Annotated[int | None, _option("--seed", panel=_SETTINGS, help="Of noise and tuning. (0)")] = None
    device: Annotated[
        str | None, _option("--device", panel=_SETTINGS, help="auto, cpu, cuda, cuda:1, mps.")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"] | None,
        _option("--dtype", panel=_SETTINGS, help="Precision."),
    ] = None
    offload: Annotated[
        bool | None,
        _option(
            "--offload/--no-offload", panel=_SETTINGS, help="Autoencoder and text encoder wait off the GPU."
        ),
    ] = None
    offline: Annotated[
        bool,
        _option("--offline", panel=_SETTINGS, envvar="CTXEDIT_OFFLINE", help="Fetch nothing from the hub."),
    ] = False


@dataclass(frozen=True)
class Span:
    """Which frames, at what size."""

    frames: Annotated[int | None, _option("--frames", panel=_CLIP, help="Number of frames.")] = None
    start: Annotated[int | None, _option("--start", panel=_CLIP, help="The first frame's number.")] = None
    stride: Annotated[
        int | None, _option("--stride", panel=_CLIP, help="Every how many frames one is taken.")
    ] = None


@dataclass(frozen=True)
class Size:
    """The working size."""

    size: Annotated[
        int | None,
        _option("--size", panel=_CLIP, help="Long side in pixels the model works at. (the model's)"),
    ] = None


@dataclass(frozen=True)
class Judging:
    """Which CLIP judges."""

    clip_model: Annotated[
        str | None,
        _option("--clip-model", panel=_METHOD, help="CLIP that judges: auto, builtin, hub id or folder."),
    ] = None


@dataclass(frozen=True)
class Captioning:
    """Who captions."""

    captioner: Annotated[
        str | None,
        _option("--captioner", panel=_METHOD, help="auto, builtin, lavis, hub id or folder of a BLIP-2."),
    ] = None
    caption_by: Annotated[
        Literal["auto", "vote", "clip"] | None,
        _option(
            "--caption-by",
            panel=_METHOD,
            help="One caption of five frames': the most common (vote), or the likeliest with CLIP. (auto)",
        ),
    ] = None
    lavis_python: Annotated[
        Path | None, _option("--lavis-python", panel=_METHOD, metavar="PATH", help="LAVIS's interpreter.")
    ] = None


@dataclass(frozen=True)
class Tuning:
    """One-shot tuning."""

    prompt: Annotated[
        str | None,
        _option("--prompt", panel=_METHOD, help="What the clip shows; without it the clip is captioned."),
    ] = None
    tune_steps: Annotated[
        int | None, _option("--tune-steps", panel=_METHOD, help="Steps of tuning; 0 is none.")
    ] = None
    adapter: Annotated[
        bool | None,
        _option("--adapter/--no-adapter", panel=_METHOD, help="With or without the context adapter."),
    ] = None
    control: Annotated[
        Path | None,
        _option(
            "--control",
            panel=_METHOD,
            metavar="FILE",
            help="A map for a ControlNet: video, image or folder of depth, pose, edges.",
        ),
    ] = None


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled."""

    steps: Annotated[
        int | None, _option("--steps", panel=_METHOD, help="Steps of the inversion and of sampling.")
    ] = None
    guidance: Annotated[float | None, _option("--guidance", panel=_METHOD, help="Guidance scale.")] = None
    negative_prompt: Annotated[
        str | None, _option("--negative-prompt", panel=_METHOD, help="What pictures shall not show.")
    ] = None


@dataclass(frozen=True)
class Scoring(Judging):
    """Which CLIP judges, and what of the picture was allowed to change."""

    mask: Annotated[
        Path | None,
        _option("--mask", panel=_METHOD, metavar="FILE", help="Image, video or folder; white may change."),
    ] = None


@dataclass(frozen=True)
class Result:
    """What is written where."""

    output: Annotated[
        Path | None,
        _option("--output", "-o", panel=_OUTPUT, help="mp4, mov, mkv, webm, gif, or a folder for PNGs."),
    ] = None
    output_size: Annotated[
        Literal["working", "source"] | None,
        _option("--output-size", panel=_OUTPUT, help="The model's working size, or the source's. (working)"),
    ] = None
    no_audio: Annotated[bool, _option("--no-audio", panel=_OUTPUT, help="Drop the source's sound.")] = False
    chroma: Annotated[
        Literal["420", "444"],
        _option("--chroma", panel=_OUTPUT, help="Of H.264: 420 plays everywhere, 444 keeps odd sizes. (420)"),
    ] = "420"


@dataclass(frozen=True)
class Place:
    """Where run folders lie."""

    runs: Annotated[
        Path,
        _option(
            "--runs",
            panel=_OUTPUT,
            envvar="CTXEDIT_RUNS",
            metavar="DIR",
            help="Where run folders lie. (runs)",
        ),
    ] = Path("runs")


@dataclass(frozen=True)
class Overwrite:
    """Leave to replace."""

    yes: Annotated[
        bool, _option("--yes", "-y", panel=_OUTPUT, help="Replace what exists; redo a finished edit.")
    ] = False


@dataclass(frozen=True)
class Dry:
    """Look first."""

    dry_run: Annotated[
        bool, _option("--dry-run", panel=_OUTPUT, help="Check everything and print the plan; load nothing.")
    ] = False


def spread(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter that is annotated with a group by the group's options.

    Typer sees the options; the command gets the groups, filled.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if dataclasses.is_dataclass(p.annotation)
    }
    parameters = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in signature.parameters.values()
        if p.name not in groups
    ]
    for group in groups.values():
        hints = typing.get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]
            )
            for f in dataclasses.fields(group)
        ]

    @functools.wraps(command)
    def called(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
        return command(**values)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    del called.__wrapped__  # type: ignore[attr-defined]
    return called


def help_unless_called(context: typer.Context) -> None:
    """Callback of a group of commands: without a command its help is printed."""
    if context.invoked_subcommand is None:
        print(context.get_help())
