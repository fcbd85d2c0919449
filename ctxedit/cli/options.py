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

from ctxedit.cli.failures import Carried
from ctxedit.cli.output import put
from ctxedit.errors import ConfigError
from ctxedit.model_names import BUILTIN, SHORT_NAMES
from ctxedit.tables import DEFAULT_PRESET, preset_names

Clip = Annotated[
    Path, typer.Argument(metavar="CLIP", help="A video, GIF, image or folder of images.", show_default=False)
]


#: For ``run`` and ``edit``: the target prompt, as an argument or with ``--target``.
TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="Target prompt: what the edited clip should show. Repeatable.", show_default=False
    ),
]


def _model_names() -> list[str]:
    return [BUILTIN, *SHORT_NAMES]


def _option(*names: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **more)


def _frames(text: str) -> int:
    """A number of frames; 0 stands for all."""
    if text == "all":
        return 0
    try:
        count = int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor all") from error
    if count < 1:
        raise ConfigError(f"clip.frames = {count}", "it must be at least 1, or all")
    return count


_SETTINGS, _CLIP, _METHOD, _OUTPUT, _TALK = "Settings", "Clip", "Method", "Output", "Messages"


@dataclass(frozen=True)
class MessageOptions:
    """Messages and output format."""

    json: Annotated[bool, _option("--json", panel=_TALK, help="Print one JSON object.")] = False
    quiet: Annotated[bool, _option("--quiet", "-q", panel=_TALK, help="Print errors only.")] = False


@dataclass(frozen=True)
class SettingOptions:
    """Sources of settings, and the model to use."""

    preset: Annotated[
        str | None,
        _option(
            "--preset",
            panel=_SETTINGS,
            envvar="CTXEDIT_PRESET",
            autocompletion=preset_names,
            help=f"Method preset; see `ctxedit presets ls`. [default: {DEFAULT_PRESET}]",
        ),
    ] = None
    config: Annotated[
        Path | None,
        _option(
            "--config", panel=_SETTINGS, metavar="FILE", help="TOML file whose settings override the preset."
        ),
    ] = None
    set: Annotated[
        list[str] | None,
        _option(
            "--set",
            panel=_SETTINGS,
            metavar="KEY=VALUE",
            help="Override any setting, e.g. fusion.blend=self. Repeatable.",
        ),
    ] = None
    model: Annotated[
        str | None,
        _option(
            "--model",
            panel=_SETTINGS,
            autocompletion=_model_names,
            help="builtin, sd14, sd15, sd21, a hub id, a folder or a .safetensors file.",
        ),
    ] = None
    seed: Annotated[int | None, _option("--seed", panel=_SETTINGS, help="Random seed. [default: 0]")] = None
    device: Annotated[
        str | None,
        _option("--device", panel=_SETTINGS, help="auto, cpu, cuda, cuda:1 or mps. [default: auto]"),
    ] = None
    dtype: Annotated[
        Literal["auto", "half", "float32", "float16", "bfloat16"] | None,
        _option("--dtype", panel=_SETTINGS, help="Numeric precision. [default: auto]"),
    ] = None
    offload: Annotated[
        bool | None,
        _option(
            "--offload/--no-offload",
            panel=_SETTINGS,
            help="Keep autoencoder and text encoder in main memory between uses.",
        ),
    ] = None
    low_memory: Annotated[
        bool | None,
        _option(
            "--low-memory/--no-low-memory",
            panel=_SETTINGS,
            help="Use as little memory as possible, and more time: half precision, --offload, one branch and "
            "one frame at a time.",
        ),
    ] = None
    offline: Annotated[
        bool,
        _option("--offline", panel=_SETTINGS, envvar="CTXEDIT_OFFLINE", help="Do not download anything."),
    ] = False


@dataclass(frozen=True)
class FrameOptions:
    """Which frames of the clip."""

    frames: Annotated[
        int | None,
        _option(
            "--frames",
            panel=_CLIP,
            metavar="N|all",
            parser=_frames,
            help="Number of frames to use, or all of the clip. [default: the preset's]",
        ),
    ] = None
    start: Annotated[
        int | None, _option("--start", panel=_CLIP, help="First frame, counting from 0. [default: 0]")
    ] = None
    stride: Annotated[
        int | None, _option("--stride", panel=_CLIP, help="Use every Nth frame. [default: the preset's]")
    ] = None


@dataclass(frozen=True)
class SizeOptions:
    """The working size."""

    size: Annotated[
        int | None,
        _option(
            "--size", panel=_CLIP, help="Long side of the working size, in pixels. [default: the model's]"
        ),
    ] = None


@dataclass(frozen=True)
class ClipModelOptions:
    """The CLIP model for scoring."""

    clip_model: Annotated[
        str | None,
        _option(
            "--clip-model",
            panel=_METHOD,
            help="CLIP model for scoring: auto, builtin, a hub id or a folder. [default: auto]",
        ),
    ] = None


@dataclass(frozen=True)
class CaptionOptions:
    """The captioner, and how one caption is chosen."""

    captioner: Annotated[
        str | None,
        _option(
            "--captioner",
            panel=_METHOD,
            help="Captioner: auto, builtin, lavis, or the hub id or folder of a BLIP-2. [default: auto]",
        ),
    ] = None
    caption_by: Annotated[
        Literal["auto", "vote", "clip"] | None,
        _option(
            "--caption-by",
            panel=_METHOD,
            help="Choose one of five captions: most common (vote) or by CLIP. [default: auto]",
        ),
    ] = None
    lavis_python: Annotated[
        Path | None,
        _option(
            "--lavis-python",
            panel=_METHOD,
            metavar="PATH",
            help="Python interpreter of the LAVIS environment.",
        ),
    ] = None


@dataclass(frozen=True)
class AddonOptions:
    """Files laid over the model."""

    lora: Annotated[
        list[str] | None,
        _option(
            "--lora",
            panel=_SETTINGS,
            metavar="FILE[:SCALE]",
            help="Merge a LoRA into the model: a file, a folder or a hub id, e.g. style.safetensors:0.8. "
            "Repeatable.",
        ),
    ] = None
    embedding: Annotated[
        list[str] | None,
        _option(
            "--embedding",
            panel=_SETTINGS,
            metavar="FILE",
            help="Add a textual inversion, whose token prompts may then contain: a file, a folder or a hub "
            "id. Repeatable.",
        ),
    ] = None


@dataclass(frozen=True)
class TuningOptions:
    """One-shot tuning."""

    prompt: Annotated[
        str | None,
        _option(
            "--prompt",
            panel=_METHOD,
            help="Source prompt: what the clip shows. Without it the clip is captioned.",
        ),
    ] = None
    tune_steps: Annotated[
        int | None,
        _option("--tune-steps", panel=_METHOD, help="Tuning steps; 0 skips tuning. [default: the preset's]"),
    ] = None
    adapter: Annotated[
        bool | None,
        _option(
            "--adapter/--no-adapter", panel=_METHOD, help="Use the context adapter. [default: the preset's]"
        ),
    ] = None
    control: Annotated[
        Path | None,
        _option(
            "--control",
            panel=_METHOD,
            metavar="FILE",
            help="Control map for the ControlNet: a video, image or folder of depth, pose or edges.",
        ),
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling."""

    steps: Annotated[
        int | None,
        _option(
            "--steps",
            panel=_METHOD,
            help="Inference steps. [default: the preset's]",
        ),
    ] = None
    guidance: Annotated[
        float | None,
        _option("--guidance", panel=_METHOD, help="Classifier-free guidance scale. [default: the preset's]"),
    ] = None
    negative_prompt: Annotated[
        str | None, _option("--negative-prompt", panel=_METHOD, help="What the result should not show.")
    ] = None


@dataclass(frozen=True)
class UpscaleOptions:
    """Super-resolution of the result."""

    upscale: Annotated[
        int | None,
        _option(
            "--upscale",
            panel=_METHOD,
            metavar="4",
            help="Upscale the result four times with a super-resolution model. [default: 1, none]",
        ),
    ] = None
    upscaler: Annotated[
        str | None,
        _option(
            "--upscaler",
            panel=_METHOD,
            help="Super-resolution model, implies --upscale 4: builtin, or a diffusers x4 upscaler's hub id "
            "or folder. [default: auto]",
        ),
    ] = None


@dataclass(frozen=True)
class RoundTripOptions:
    """The round trip."""

    round_trip: Annotated[
        Literal["estimate", "whole", "off"] | None,
        _option(
            "--round-trip",
            panel=_METHOD,
            help="Report how well the clip comes back from its inversion: from four steps, or the whole way. "
            "[default: estimate]",
        ),
    ] = None


@dataclass(frozen=True)
class ScoringOptions(ClipModelOptions):
    """The CLIP model for scoring, and where the edit may change the frames."""

    mask: Annotated[
        Path | None,
        _option(
            "--mask",
            panel=_METHOD,
            metavar="FILE",
            help="Mask: an image, video or folder; only white areas may change.",
        ),
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """The edited video."""

    output: Annotated[
        Path | None,
        _option(
            "--output",
            "-o",
            panel=_OUTPUT,
            help="Output file (mp4, mov, mkv, webm, gif; of a photo png, jpg, webp), or a folder for PNG "
            "frames.",
        ),
    ] = None
    output_size: Annotated[
        Literal["working", "source"] | None,
        _option(
            "--output-size",
            panel=_OUTPUT,
            help="Size of the output: the working size or the source's. [default: working]",
        ),
    ] = None
    no_audio: Annotated[
        bool, _option("--no-audio", panel=_OUTPUT, help="Do not copy the source's sound.")
    ] = False
    no_metadata: Annotated[
        bool,
        _option("--no-metadata", panel=_OUTPUT, help="Do not write into the files how they were made."),
    ] = False
    chroma: Annotated[
        Literal["420", "444"],
        _option(
            "--chroma",
            panel=_OUTPUT,
            help="H.264 chroma: 420 plays everywhere, 444 keeps odd sizes. [default: 420]",
        ),
    ] = "420"


@dataclass(frozen=True)
class RunsOptions:
    """The folder for runs."""

    runs: Annotated[
        Path,
        _option(
            "--runs",
            panel=_OUTPUT,
            envvar="CTXEDIT_RUNS",
            metavar="DIR",
            help="Folder for runs. [default: runs]",
        ),
    ] = Path("runs")


@dataclass(frozen=True)
class OverwriteOption:
    """Permission to replace files."""

    yes: Annotated[
        bool,
        _option(
            "--yes",
            "-y",
            panel=_OUTPUT,
            help="Go on without asking: replace files, redo finished work, download, "
            "edit footage that the built-in models do not know.",
        ),
    ] = False


@dataclass(frozen=True)
class DownloadOption:
    """Permission to download."""

    yes: Annotated[
        bool, _option("--yes", "-y", panel=_OUTPUT, help="Download models of more than 1 GB without asking.")
    ] = False


@dataclass(frozen=True)
class DownloadOrTuneOption:
    """Permission to download, and to tune on any footage."""

    yes: Annotated[
        bool,
        _option(
            "--yes", "-y", panel=_OUTPUT,
            help="Download models of more than 1 GB without asking; tune on footage that the built-in models "
            "do not know.",
        ),
    ] = False  # fmt: skip


@dataclass(frozen=True)
class RemoveOption:
    """Permission to remove."""

    yes: Annotated[bool, _option("--yes", "-y", panel=_OUTPUT, help="Remove without asking.")] = False


@dataclass(frozen=True)
class DryRunOption:
    """Check without running."""

    dry_run: Annotated[
        bool,
        _option(
            "--dry-run",
            panel=_OUTPUT,
            help="Check everything and print the plan without loading or downloading models.",
        ),
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
        try:
            return command(**values)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BaseException as error:
            raise Carried(error) from error

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    del called.__wrapped__
    return called


def help_unless_called(context: typer.Context) -> None:
    """Callback of a group of commands: without a command its help is printed."""
    if context.invoked_subcommand is None:
        put(context.get_help())
