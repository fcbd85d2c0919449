"""Typed settings. A preset or a config file is TOML with these tables; unknown keys are refused.

Order of precedence, strongest first: flag, ``CTXEDIT_<TABLE>_<KEY>`` variable, ``--config`` file, preset,
default. A ``[builtin]`` table overlays a preset when the built-in models are used: published settings are for
Stable Diffusion, the small models need other lengths and rates.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ctxedit.errors import ConfigError, did_you_mean
from ctxedit.model_names import BUILTIN as BUILTIN
from ctxedit.model_names import is_own, whole, whole_scaled
from ctxedit.patterns import pattern_names
from ctxedit.renames import RENAMED, current_name, variable_of
from ctxedit.tables import DEFAULT_PRESET, parse, preset_table, read_table
from ctxedit.tables import PRESET_FOLDERS as PRESET_FOLDERS
from ctxedit.tables import preset_names as preset_names
from ctxedit.tables import preset_path as preset_path

#: In ``edit.negative_prompt`` this stands for the source prompt.
SOURCE = "{source}"


@dataclass(frozen=True)
class ClipConfig:
    """Which frames, at what size.

    ``frames`` 0 is all that the clip has; ``size`` 0 is the model's own resolution (long side, pixels).
    """

    frames: int = 8
    start: int = 0
    stride: int = 2
    size: int = 0


@dataclass(frozen=True)
class WindowConfig:
    """How a clip that is too long for one pass of the network is worked: in windows that overlap.

    Each window attends to the clip's first frame and to the first of the window before it; shared frames are
    averaged after every step. Tuning draws windows from the whole clip.

    Attributes:
        size: the most frames in a window; a clip of no more is worked in one piece.
        overlap: the fewest frames that neighbouring windows share.
    """

    size: int = 24
    overlap: int = 3


@dataclass(frozen=True)
class AttentionConfig:
    """What frames see of each other.

    Attributes:
        frames: ``causal`` (itself and those before it, ``window`` in all), ``sparse-causal`` (first and
            previous), ``key-frame`` (frame ``key_frame``, negative: the middle one), ``none`` (itself), or
            another pattern of :mod:`ctxedit.patterns`.
        window: frames seen by ``causal``.
        key_frame: index of the key frame.
        min_channels: in layers with fewer channels each frame attends to itself alone, whatever ``frames`` is
            (FateZero: 640, which leaves out Stable Diffusion's finest level).
        group_norm: what the group norms of the residual blocks, and the one before the output, take mean and
            variance over: each ``frame``, or all frames of the ``clip`` together, as the published code of
            Tune-A-Video, FateZero and ControlVideo does. In the ControlNet as well.
        temporal: temporal attention layers, one for each transformer block, that do nothing until tuned.
        temporal_init: ``zero``: after the block's feed-forward, weights of their own (Tune-A-Video);
            ``copy``: beside self-attention and on its input, with its weights, behind a zero projection, and
            not in the middle block (ControlVideo).
        temporal_conv_rank: of the low-rank convolutions over frames behind the denoiser's spatial
            convolutions, which do nothing until tuned (FateZero's shape edits: 160); 0 is none.
        backend: ``sdpa`` (PyTorch) or ``xformers``.
    """

    frames: str = "causal"
    window: int = 3
    key_frame: int = 0
    min_channels: int = 0
    group_norm: Literal["frame", "clip"] = "frame"
    temporal: bool = False
    temporal_init: Literal["zero", "copy"] = "zero"
    temporal_conv_rank: int = 0
    backend: Literal["sdpa", "xformers"] = "sdpa"


@dataclass(frozen=True)
class AdapterConfig:
    """The context adapter (paper, sections 4.1, 4.2, appendix C).

    Attributes:
        enabled: whether there is one.
        width: token width; a multiple of ``heads``.
        blocks: transformer blocks.
        heads: attention heads.
        patch: latent pixels a token, in each direction.
        window: frames of the causal temporal attention.
        image: image side: ``latent`` (learned patches of x̂_0) or ``clip`` (these and CLIP's tokens of the
            decoded x̂_0: slower).
        bound: r = bound·tanh(r / bound); 0 leaves it free, as the paper does.
        scale: ``paper`` (k = a(1 − a)) or ``noise`` (the published code's variant).
        norm: ``kept`` scales a·x_0 + b back to the norm of a·x_0, frame by frame: the shift can move signal,
            but not write x_0 louder. ``free`` leaves it, as the paper does.
    """

    enabled: bool = True
    width: int = 512
    blocks: int = 4
    heads: int = 8
    patch: int = 2
    window: int = 3
    image: Literal["latent", "clip"] = "latent"
    bound: float = 0.0
    scale: Literal["paper", "noise"] = "paper"
    norm: Literal["free", "kept"] = "free"


@dataclass(frozen=True)
class ControlConfig:
    """A ControlNet beside the denoiser (Zhang et al. 2023), in tuning, inversion and sampling alike.

    Its attention sees the frames that the denoiser's sees, as ControlVideo's does.

    Attributes:
        kind: ``none``; ``canny`` (edges computed from the clip); ``video`` (``map``, brought by the person).
        map: with ``video``: a video, image or folder of depth, pose, edges, … beside the clip.
        model: hub id or folder of a diffusers ControlNet; ``auto`` is the one on Canny edges that belongs to
            the denoiser: the built-in one, or ``lllyasviel/sd-controlnet-canny`` for Stable Diffusion 1.x.
        scale: of what it adds to the denoiser's activations; 0 adds nothing.
        low, high: Canny's thresholds, on OpenCV's scale.
    """

    kind: Literal["none", "canny", "video"] = "none"
    map: str = ""
    model: str = "auto"
    scale: float = 1.0
    low: int = 100
    high: int = 200


@dataclass(frozen=True)
class TuneConfig:
    """One-shot tuning. ``trainable_modules`` names what moves: ``attn1.to_q``, ``temporal``, ``adapter``, …

    ``controlnet.attn1.to_out`` is that of the ControlNet, ``temporal`` are the projections of the temporal
    attention (not its norms), ``temporal_conv`` the temporal convolutions.

    ``adapter_init`` is what the adapter starts from: ``zero`` (it changes nothing, as in the paper), or the
    ``pretrained`` one in the model's ``adapter`` folder, whose sizes ``[adapter]`` must then have.
    """

    steps: int = 200
    lr: float = 1e-5
    adapter_lr: float = 0.0
    adapter_init: Literal["zero", "pretrained"] = "zero"
    weight_decay: float = 1e-2
    trainable_modules: tuple[str, ...] = ("attn1", "adapter")
    loss_weight: Literal["snr", "one", "min_snr"] = "snr"
    gradient_checkpointing: bool = True
    save_every: int = 50
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class InvertConfig:
    """DDIM inversion: ``prompt`` is the ``source`` caption or ``empty``.

    ``fixed_point_iterations`` are further network evaluations a step, towards the exact inverse.
    ``final_alpha`` is ᾱ_0, the level of the clean clip, in inversion and sampling alike: ``one`` (the paper),
    or as the ``checkpoint``'s scheduler says with ``set_alpha_to_one``: where that is false, as for Stable
    Diffusion, the first training level's.
    """

    steps: int = 20
    prompt: Literal["source", "empty"] = "source"
    fixed_point_iterations: int = 0
    final_alpha: Literal["one", "checkpoint"] = "one"


@dataclass(frozen=True)
class FusionConfig:
    """Attention fusion. Shares count sampling steps from the noisy end: 0.5 is t ∈ [0.5 T, T].

    Attributes:
        self_replace_steps, cross_replace_steps: share of the steps, from the first one on, in which the
            source's self- and cross-attention replace the edit's (prompt-to-prompt's names).
        cross: ``auto`` (replace where word counts agree, else refine), ``replace``, ``refine``.
        blend: ``none``; ``self`` (FateZero: self-attention of the source outside the changed words' mask);
            ``latent`` (prompt-to-prompt's local blend: the source's latents outside it).
        mask_threshold: the mask's, after division by each frame's maximum.
        mask_resolution: which cross-attention layers make the mask, as a share of the latent's side (0.25:
            the 16² of a 64² latent, as FateZero and prompt-to-prompt).
        max_resolution: fuse layers up to this share of the latent's side (0.5: not the finest of 64×64).
        word_weights: weight of a word of the target prompt, as ``{"watercolor" = 10.0}``: the equaliser.
        word_weights_where: the equaliser acts where the source's cross-attention serves (``fused``: in those
            steps and layers, as published), or in every step and layer (``everywhere``).
    """

    self_replace_steps: float = 0.5
    cross_replace_steps: float = 0.5
    cross: Literal["auto", "replace", "refine"] = "auto"
    blend: Literal["none", "self", "latent"] = "none"
    mask_threshold: float = 0.3
    mask_resolution: float = 0.25
    max_resolution: float = 1.0
    word_weights: dict[str, float] = field(default_factory=dict)
    word_weights_where: Literal["fused", "everywhere"] = "fused"


@dataclass(frozen=True)
class EditConfig:
    """Sampling.

    Attributes:
        steps: DDIM steps; from an inversion as many as its own.
        guidance: classifier-free guidance scale; 1 is none.
        negative_prompt: what guidance leads away from. ``{source}`` in it stands for the source prompt:
            guidance then follows the difference between target and source alone, and the source prompt as
            target gives the inversion back (negative-prompt inversion, Miyake et al. 2023).
        eta: 0 deterministic, 1 ancestral.
        start: ``inversion``, or ``noise``: the clip noised to ``strength`` of the levels (SDEdit).
        strength: above 0, up to 1; for ``noise``.
        long_prompts: encode a prompt that is longer than the text encoder takes in pieces, side by side;
            otherwise it is refused.
    """

    steps: int = 20
    guidance: float = 7.5
    negative_prompt: str = ""
    eta: float = 0.0
    start: Literal["inversion", "noise"] = "inversion"
    strength: float = 1.0
    long_prompts: bool = False


@dataclass(frozen=True)
class UpscaleConfig:
    """Super-resolution of the result (a cascade: Ho et al. 2022).

    Attributes:
        scale: 1 is none; 4.
        model: ``auto`` is the one beside ctxedit's own models, and Stable Diffusion's x4 upscaler for other
            checkpoints; ``builtin``; the hub id or folder of a diffusers x4 upscaler.
        steps: sampling steps; 0 is the model's default.
        noise_level: timestep up to which the low resolution is noised, for the model to redraw what is lost;
            -1 is the model's default.
        guidance_scale: classifier-free guidance scale, 1 is none; 0 is the model's default.
    """

    scale: int = 1
    model: str = "auto"
    steps: int = 0
    noise_level: int = -1
    guidance_scale: float = 0.0


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        dtype: ``auto`` is float32 on CPU and MPS, else half precision; ``half`` is bfloat16 where there is
            some, else float16.
        offload: keep autoencoder and text encoder in main memory between calls.
        low_memory: ``offload``, half precision unless a ``dtype`` is given, gradient checkpointing; frames
            are encoded and decoded singly, and guidance's branches sampled one after another.
        round_trip: how well the clip comes back from its inversion: an ``estimate`` from four passes of the
            network, the ``whole`` way in as many as the inversion has steps, or ``off``. ``auto`` is
            ``estimate`` for the commands ``run`` and ``edit``, and ``off`` in comparisons and from Python.
        lora: LoRA files merged into the model, each ``FILE_OR_ID[:SCALE]``, in this order.
        embedding: files or hub ids of textual inversions; their tokens can be written in every prompt.
    """

    model: str = BUILTIN
    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "half", "float32", "float16", "bfloat16"] = "auto"
    offload: bool = False
    low_memory: bool = False
    round_trip: Literal["auto", "estimate", "whole", "off"] = "auto"
    captioner: str = "auto"
    caption_by: Literal["auto", "vote", "clip"] = "auto"
    clip_model: str = "auto"
    clip: ClipConfig = field(default_factory=ClipConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    invert: InvertConfig = field(default_factory=InvertConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    upscale: UpscaleConfig = field(default_factory=UpscaleConfig)


def setting_names() -> list[str]:
    """Every setting's dotted name, as in ``--set``."""
    base = Config()
    tables = {top.name: getattr(base, top.name) for top in fields(Config)}
    return [
        f"{name}{key}"
        for name, value in tables.items()
        for key in ([f".{f.name}" for f in fields(value)] if dataclasses.is_dataclass(value) else [""])
    ]


_T = TypeVar("_T")
#: How an error message names the type of a setting.
_KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def merge(config: _T, table: Mapping[str, Any], where: str = "") -> _T:
    """A copy of a settings dataclass with the table's values; raises ConfigError on unknown keys or types."""
    hints = typing.get_type_hints(type(config))
    names = {f.name for f in fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise _unknown(f"{where}{key}", names)
        old = getattr(config, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{key} is a table, not {value!r}")
            changes[key] = merge(old, value, f"{where}{key}.")
        else:
            changes[key] = _convert(value, hints[key], f"{where}{key}")
    return replace(config, **changes)  # type: ignore[type-var]


def _unknown(name: str, known: Collection[str]) -> ConfigError:
    """For a key that there is not: its new name where it was renamed, else the nearest."""
    overlay = f"{BUILTIN}." if name.startswith(f"{BUILTIN}.") else ""
    plain = name.removeprefix(overlay)
    if (new := current_name(plain)) != plain:
        return ConfigError(f"{name} is now called {overlay}{new}", f"write {overlay}{new} instead of {name}")
    guess = did_you_mean(plain, setting_names()).replace("'", f"'{overlay}", 1)
    return ConfigError(f"unknown key {name}", f"{guess}known here: {', '.join(sorted(known))}")


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            guess = did_you_mean(str(value), map(str, args))
            raise ConfigError(f"{where} = {value!r}", f"{guess}one of: {', '.join(map(str, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(value, args[0], where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(v, args[0], where) for v in value)
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} is too large a number", "it takes a float") from error
    if isinstance(hint, type) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where} = {value!r}", f"must be {_KINDS.get(hint, f'a {name}')}")


def load(
    preset: str = DEFAULT_PRESET,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Settings from all sources, by the order of precedence above.

    Args:
        preset: a preset's name or a path to one.
        file: a config file.
        flags: nested table of what was said on the command line.
        environ: the process's environment (tests give their own).

    Raises:
        ConfigError: unknown preset, key or value.
    """
    tables = [preset_table(preset)] + ([read_table(file)] if file else [])
    tables += [environment(os.environ if environ is None else environ), dict(flags or {})]
    model = next((t["model"] for t in reversed(tables) if "model" in t), BUILTIN)
    config = Config()
    for table in tables:
        table = {key: value for key, value in table.items() if key != "about"}
        overlay = table.pop(BUILTIN, {})
        config = merge(config, table)
        if not isinstance(overlay, Mapping):
            raise ConfigError(f"{BUILTIN} is a table, not {overlay!r}")
        overlaid = merge(config, overlay, f"{BUILTIN}.")  # a wrong key is an error for every model
        config = overlaid if isinstance(model, str) and is_own(model) else config
    return validated(absolute(lean(config)))


def lean(config: Config) -> Config:
    """The settings with those that ``low_memory`` stands for."""
    if not config.low_memory:
        return config
    dtype = "half" if config.dtype == "auto" else config.dtype
    tune = replace(config.tune, gradient_checkpointing=True)
    return replace(config, offload=True, dtype=dtype, tune=tune)


def absolute(config: Config) -> Config:
    """The settings with every model that is named by a path named by its whole path."""
    control = replace(config.control, model=whole(config.control.model))
    upscale = replace(config.upscale, model=whole(config.upscale.model))
    model, captioner, clip = (whole(name) for name in (config.model, config.captioner, config.clip_model))
    lora = tuple(map(whole_scaled, config.lora))
    embedding = tuple(map(whole, config.embedding))
    config = replace(config, lora=lora, embedding=embedding, upscale=upscale)
    return replace(config, model=model, captioner=captioner, clip_model=clip, control=control)


def environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The nested table that ``CTXEDIT_SEED=3`` or ``CTXEDIT_EDIT_GUIDANCE=5`` stand for.

    Variables that are not settings (``CTXEDIT_DEBUG``, …) are left alone; old names of settings are refused.
    """
    for old, new in RENAMED.items():
        if (name := variable_of(old)) in environ:
            raise ConfigError(f"{name} is now called {variable_of(new)}", f"set {variable_of(new)} instead")
    out: dict[str, Any] = {}
    base = Config()
    for top in fields(Config):
        value = getattr(base, top.name)
        if not dataclasses.is_dataclass(value):
            _from_text(environ, f"CTXEDIT_{top.name.upper()}", value, out, top.name)
            continue
        inner: dict[str, Any] = {}
        for sub in fields(value):
            name = f"CTXEDIT_{top.name.upper()}_{sub.name.upper()}"
            _from_text(environ, name, getattr(value, sub.name), inner, sub.name)
        if inner:
            out[top.name] = inner
    return out


def _from_text(environ: Mapping[str, str], name: str, old: Any, out: dict[str, Any], key: str) -> None:
    if name not in environ:
        return
    text = environ[name]
    if isinstance(old, str):
        out[key] = text
        return
    try:
        out[key] = parse(f"v = {text}")["v"]
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} is not a value", "write it as in a TOML file") from error


def validated(config: Config) -> Config:
    """The config itself, or ConfigError for a value out of range."""
    checks = [
        (-(2**63) <= config.seed < 2**63, "seed", "from -2**63 to 2**63 - 1"),
        (
            config.clip.start + config.clip.frames * config.clip.stride < 2**53,
            "clip.frames",
            "less, with this clip.stride and clip.start",
        ),
        (config.clip.frames >= 0, "clip.frames", "0 (all of the clip) or more"),
        (config.clip.stride >= 1, "clip.stride", "at least 1"),
        (config.clip.start >= 0, "clip.start", "0 or more"),
        (config.clip.size >= 0, "clip.size", "0 (the model's) or pixels"),
        (config.window.overlap >= 0, "window.overlap", "0 or more"),
        (config.window.size > config.window.overlap, "window.size", "above window.overlap"),
        (config.attention.window >= 1, "attention.window", "at least 1"),
        (config.attention.min_channels >= 0, "attention.min_channels", "0 (all layers) or more"),
        (config.attention.temporal_conv_rank >= 0, "attention.temporal_conv_rank", "0 (none) or more"),
        (config.adapter.heads >= 1, "adapter.heads", "at least 1"),
        (
            # Rows and columns have sines and cosines each: a width is a multiple of 4.
            config.adapter.width > 0
            and config.adapter.width % math.lcm(max(1, config.adapter.heads), 4) == 0,
            "adapter.width",
            "a multiple of adapter.heads and of 4",
        ),
        (
            config.attention.frames in pattern_names(),
            "attention.frames",
            f"one of {', '.join(pattern_names())}",
        ),
        (config.adapter.blocks >= 1, "adapter.blocks", "at least 1"),
        (config.adapter.patch >= 1, "adapter.patch", "at least 1"),
        (config.adapter.window >= 1, "adapter.window", "at least 1"),
        (config.adapter.bound >= 0, "adapter.bound", "0 (free) or more"),
        (0 <= config.control.scale < math.inf, "control.scale", "0 or more"),
        (config.control.low >= 0, "control.low", "0 or more"),
        (config.control.low <= config.control.high, "control.high", "control.low or more"),
        (config.tune.steps >= 0, "tune.steps", "0 or more"),
        (0 < config.tune.lr < math.inf, "tune.lr", "above 0"),
        (0 <= config.tune.adapter_lr < math.inf, "tune.adapter_lr", "0 (as tune.lr) or more"),
        (0 <= config.tune.weight_decay < math.inf, "tune.weight_decay", "0 or more"),
        (config.tune.max_grad_norm >= 0, "tune.max_grad_norm", "0 (off) or more"),
        (config.tune.save_every >= 1, "tune.save_every", "at least 1"),
        (1 <= config.edit.steps <= 1000, "edit.steps", "1 to 1000"),
        (1 <= config.invert.steps <= 1000, "invert.steps", "1 to 1000"),
        (config.invert.fixed_point_iterations >= 0, "invert.fixed_point_iterations", "0 or more"),
        (0 <= config.edit.guidance < math.inf, "edit.guidance", "0 or more"),
        (0 <= config.edit.eta <= 1, "edit.eta", "0 to 1"),
        (0 < config.edit.strength <= 1, "edit.strength", "above 0, up to 1"),
        (0 <= config.fusion.self_replace_steps <= 1, "fusion.self_replace_steps", "0 to 1"),
        (0 <= config.fusion.cross_replace_steps <= 1, "fusion.cross_replace_steps", "0 to 1"),
        (0 < config.fusion.mask_resolution <= 1, "fusion.mask_resolution", "above 0, up to 1"),
        (0 < config.fusion.max_resolution <= 1, "fusion.max_resolution", "above 0, up to 1"),
        (0 <= config.fusion.mask_threshold < 1, "fusion.mask_threshold", "0 to 1"),
        (config.upscale.scale in (1, 4), "upscale.scale", "1 (none) or 4"),
        (0 <= config.upscale.steps <= 1000, "upscale.steps", "0 (the model's default) to 1000"),
        (-1 <= config.upscale.noise_level < 1000, "upscale.noise_level", "-1 (the model's default) to 999"),
        (
            0 <= config.upscale.guidance_scale < math.inf,
            "upscale.guidance_scale",
            "0 (the model's default) or more",
        ),
        (
            all(map(math.isfinite, config.fusion.word_weights.values())),
            "fusion.word_weights",
            "finite weights",
        ),
    ]
    for good, name, expected in checks:
        if not good:
            value = functools.reduce(getattr, name.split("."), config)
            raise ConfigError(f"{name} = {value}", f"it must be {expected}")
    if config.control.map and config.control.kind != "video":
        raise ConfigError(
            f"control.map is given, but control.kind is {config.control.kind!r}",
            'a map that you bring is of kind "video"',
        )
    if config.edit.start == "inversion" and config.edit.steps != config.invert.steps:
        raise ConfigError(
            f"edit.steps = {config.edit.steps} but invert.steps = {config.invert.steps}",
            "sampling from the inversion walks the same levels: make them equal",
        )
    return config


def to_table(config: Any) -> dict[str, Any]:
    """Settings as nested plain tables, ready for TOML or JSON."""
    return {k: (list(v) if isinstance(v, tuple) else v) for k, v in dataclasses.asdict(config).items()}
