"""Options that commands share, in groups: settings, clip and method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer

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
        "--target",
        metavar="TEXT",
        show_default=False,
        help="Target prompt: what the edited clip should show. Repeatable.",
    ),
]


def _model_names() -> list[str]:
    return [BUILTIN, *SHORT_NAMES]


def option(*names: str, **more: Any) -> Any:
    """A Typer option of a group; the help texts give the defaults."""
    return typer.Option(*names, show_default=False, **more)


def _frames(text: str) -> int:
    """Parse a number of frames, or ``all`` to 0."""
    if text == "all":
        return 0
    try:
        count = int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor all") from error
    if count < 1:
        raise ConfigError(f"clip.frames = {count}", "it must be at least 1, or all")
    return count


@dataclass(frozen=True)
class MessageOptions:
    """Messages and output format."""

    panel: ClassVar = "Messages"
    json: Annotated[bool, option("--json", help="Print one JSON object.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="Print errors only.")] = False


@dataclass(frozen=True)
class SettingOptions:
    """Sources of settings, and the model to use."""

    panel: ClassVar = "Settings"
    preset: Annotated[
        str | None,
        option(
            "--preset",
            envvar="CTXEDIT_PRESET",
            autocompletion=preset_names,
            help=f"Method preset; see `ctxedit presets ls`. [default: {DEFAULT_PRESET}]",
        ),
    ] = None
    config: Annotated[
        Path | None,
        option("--config", metavar="FILE", help="TOML file whose settings override the preset."),
    ] = None
    set: Annotated[
        list[str] | None,
        option(
            "--set",
            metavar="KEY=VALUE",
            help="Override any setting, e.g. fusion.blend=self. Repeatable.",
        ),
    ] = None
    model: Annotated[
        str | None,
        option(
            "--model",
            autocompletion=_model_names,
            help="builtin, sd14, sd15, sd21, a hub id, a folder or a .safetensors file.",
        ),
    ] = None
    seed: Annotated[int | None, option("--seed", help="Random seed. [default: 0]")] = None
    device: Annotated[
        str | None,
        option("--device", help="auto, cpu, cuda, cuda:1 or mps. [default: auto]"),
    ] = None
    dtype: Annotated[
        Literal["auto", "half", "float32", "float16", "bfloat16"] | None,
        option("--dtype", help="Numeric precision. [default: auto]"),
    ] = None
    offload: Annotated[
        bool | None,
        option(
            "--offload/--no-offload",
            help="Keep autoencoder and text encoder in main memory between uses.",
        ),
    ] = None
    low_memory: Annotated[
        bool | None,
        option(
            "--low-memory/--no-low-memory",
            help="Use as little memory as possible, at the cost of time: half precision, --offload, one "
            "branch and one frame at a time.",
        ),
    ] = None
    offline: Annotated[
        bool,
        option("--offline", envvar="CTXEDIT_OFFLINE", help="Do not download anything."),
    ] = False


@dataclass(frozen=True)
class FrameOptions:
    """Which frames of the clip."""

    panel: ClassVar = "Clip"
    frames: Annotated[
        int | None,
        option(
            "--frames",
            metavar="N|all",
            parser=_frames,
            help="Number of frames to use, or all of the clip. [default: the preset's]",
        ),
    ] = None
    start: Annotated[int | None, option("--start", help="First frame, counting from 0. [default: 0]")] = None
    stride: Annotated[int | None, option("--stride", help="Use every Nth frame. [default: the preset's]")] = (
        None
    )


@dataclass(frozen=True)
class SizeOptions:
    """The working size."""

    panel: ClassVar = "Clip"
    size: Annotated[
        int | None,
        option("--size", help="Long side of the working size, in pixels. [default: the model's]"),
    ] = None


@dataclass(frozen=True)
class ClipModelOptions:
    """The CLIP model for scoring."""

    panel: ClassVar = "Method"
    clip_model: Annotated[
        str | None,
        option(
            "--clip-model",
            help="CLIP model for scoring: auto, builtin, a hub id or a folder. [default: auto]",
        ),
    ] = None


@dataclass(frozen=True)
class CaptionOptions:
    """The captioner, and how one caption is chosen."""

    panel: ClassVar = "Method"
    captioner: Annotated[
        str | None,
        option(
            "--captioner",
            help="Captioner: auto, builtin, lavis, or the hub id or folder of a BLIP-2. [default: auto]",
        ),
    ] = None
    caption_by: Annotated[
        Literal["auto", "vote", "clip"] | None,
        option(
            "--caption-by",
            help="How to choose one of five captions: the most common, or by CLIP. [default: auto]",
        ),
    ] = None
    lavis_python: Annotated[
        Path | None,
        option(
            "--lavis-python",
            metavar="PATH",
            help="Python interpreter of the LAVIS environment.",
        ),
    ] = None


@dataclass(frozen=True)
class AddonOptions:
    """Files added to the model."""

    panel: ClassVar = "Settings"
    lora: Annotated[
        list[str] | None,
        option(
            "--lora",
            metavar="FILE[:SCALE]",
            help="Merge a LoRA into the model: a file, a folder or a hub id, e.g. art.safetensors:0.8. "
            "Repeatable.",
        ),
    ] = None
    embedding: Annotated[
        list[str] | None,
        option(
            "--embedding",
            metavar="FILE",
            help="Add a textual inversion (a file, a folder or a hub id); prompts may then contain its "
            "token. Repeatable.",
        ),
    ] = None


@dataclass(frozen=True)
class TuningOptions:
    """One-shot tuning."""

    panel: ClassVar = "Method"
    prompt: Annotated[
        str | None,
        option(
            "--prompt",
            metavar="TEXT",
            help="Source prompt: what the clip shows. Without it the clip is captioned.",
        ),
    ] = None
    tune_steps: Annotated[
        int | None,
        option("--tune-steps", help="Tuning steps; 0 skips tuning. [default: the preset's]"),
    ] = None
    adapter: Annotated[
        bool | None,
        option("--adapter/--no-adapter", help="Use the context adapter. [default: the preset's]"),
    ] = None
    control: Annotated[
        Path | None,
        option(
            "--control",
            metavar="FILE",
            help="Control map for the ControlNet: a video, image or folder of depth, pose or edges.",
        ),
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling."""

    panel: ClassVar = "Method"
    steps: Annotated[
        int | None,
        option(
            "--steps",
            help="Inference steps. [default: the preset's]",
        ),
    ] = None
    guidance: Annotated[
        float | None,
        option("--guidance", help="Classifier-free guidance scale. [default: the preset's]"),
    ] = None
    negative_prompt: Annotated[
        str | None, option("--negative-prompt", metavar="TEXT", help="What the result should not show.")
    ] = None


@dataclass(frozen=True)
class UpscaleOptions:
    """Super-resolution of the result."""

    panel: ClassVar = "Method"
    upscale: Annotated[
        int | None,
        option(
            "--upscale",
            metavar="1|4",
            help="Upscale the result by a factor of four with a super-resolution model; 1 turns it off. "
            "[default: 4 for the built-in models, else 1]",
        ),
    ] = None
    upscaler: Annotated[
        str | None,
        option(
            "--upscaler",
            help="Super-resolution model: builtin, or the hub id or folder of a diffusers x4 upscaler. "
            "Implies --upscale 4. [default: auto]",
        ),
    ] = None


@dataclass(frozen=True)
class RoundTripOptions:
    """The round trip."""

    panel: ClassVar = "Method"
    round_trip: Annotated[
        Literal["estimate", "whole", "off"] | None,
        option(
            "--round-trip",
            help="Report how well the clip is reconstructed from its inversion: estimated from four steps, "
            "measured with all of them, or not at all. "
            "[default: estimate]",
        ),
    ] = None


@dataclass(frozen=True)
class ScoringOptions(ClipModelOptions):
    """The CLIP model for scoring, and where the edit may change the frames."""

    mask: Annotated[
        Path | None,
        option(
            "--mask",
            metavar="FILE",
            help="Only this area may change: white in an image, video or folder, or the boxes of a layout "
            "(.json). Outside it, the output shows the source, pixel for pixel if both have the same "
            "size.",
        ),
    ] = None
