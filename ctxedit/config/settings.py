"""The settings, one dataclass for each table of a preset or config file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ctxedit.model_names import BUILTIN

#: In ``edit.negative_prompt`` this stands for the source prompt.
SOURCE = "{source}"
#: How the levels are walked; see :mod:`ctxedit.diffusion.multistep`.
Solver = Literal["ddim", "dpm++2m"]


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
    """Overlapping windows, for clips that are too long for one pass of the network.

    Each window attends to the clip's first frame and to the first of the window before it; shared frames are
    averaged after every step. Tuning draws windows from the whole clip.

    Attributes:
        size: maximum frames of a window; a clip with no more frames is one window.
        overlap: minimum number of frames that neighbouring windows share.
    """

    size: int = 24
    overlap: int = 3


@dataclass(frozen=True)
class AttentionConfig:
    """Attention across frames.

    Attributes:
        frames: ``causal`` (itself and those before it, ``window`` in all), ``sparse-causal`` (first and
            previous), ``key-frame`` (frame ``key_frame``, negative: the middle one), ``none`` (itself), or
            another pattern of :mod:`ctxedit.patterns`.
        window: frames that each frame attends to with ``causal``.
        key_frame: index of the key frame.
        min_channels: in layers with fewer channels each frame attends to itself alone, regardless of
            ``frames`` (FateZero: 640, which leaves out Stable Diffusion's finest level).
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
            but not amplify x_0. ``free`` does not rescale, as in the paper.
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
    """A ControlNet (Zhang et al. 2023), used in tuning, inversion and sampling.

    Its frames attend to the same frames as the denoiser's, as in ControlVideo.

    Attributes:
        kind: ``none``; ``canny`` (edges computed from the clip); ``video`` (``map``, given by the user).
        map: with ``video``: a video, image or folder of depth, pose, edges, … for the clip's frames; empty
            where controlnet_aux computes it, for the published ControlNets on HED edges, depth and poses.
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

    ``frames`` is how many consecutive frames a step sees, drawn again for each step; 0 is all of the clip, or
    of one window of it.
    """

    steps: int = 200
    frames: int = 0
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

    ``solver`` is as that of the edit. ``fixed_point_iterations`` are further network evaluations a step,
    towards the exact inverse of DDIM's step.
    ``final_alpha`` is ᾱ_0, the level of the clean clip, in both inversion and sampling: ``one`` (the paper),
    or as the ``checkpoint``'s scheduler says with ``set_alpha_to_one``: where that is false, as for Stable
    Diffusion, the first training level's.
    """

    steps: int = 20
    prompt: Literal["source", "empty"] = "source"
    solver: Solver = "ddim"
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
        steps: sampling steps; from an inversion as many as its own.
        solver: ``ddim``, or ``dpm++2m``, of second order at as many network evaluations.
        guidance: classifier-free guidance scale; 1 is none.
        guidance_interval: the share of the steps, counted from the noisy end, at which guidance begins, and
            the one at which it ends (Kynkäänniemi et al. 2024); outside, the unconditional branch is not run.
        cache_interval: where nothing is fused, run the whole UNet in every so many steps only, and in between
            its finest level alone, on the deep features kept before (DeepCache, Ma et al. 2024); 1 is off.
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
    solver: Solver = "ddim"
    guidance: float = 7.5
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    cache_interval: int = 1
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
        dtype: ``auto`` is half precision on GPUs and on CPUs that multiply bfloat16 (AVX512-BF16, AMX), else
            float32; ``half`` is bfloat16 where there is some, else float16.
        offload: keep autoencoder and text encoder in main memory between calls.
        low_memory: ``offload``, half precision unless a ``dtype`` is given, gradient checkpointing; frames
            are encoded and decoded singly, and guidance's branches sampled one after another.
        keep_source: keep in memory what edits take from the source's branch in steps with fusion, so that it
            runs once for all targets. ``auto`` does so where it changes no result (bfloat16 on a CPU), saves
            passes and takes at most 256 MiB. ``on`` does so everywhere but for clips in several windows, and
            already in a plain DDIM inversion: results may then change by rounding. ``off`` does not.
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
    keep_source: Literal["auto", "on", "off"] = "auto"
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


def to_table(config: Any) -> dict[str, Any]:
    """Settings as nested plain tables, ready for TOML or JSON."""
    return {k: (list(v) if isinstance(v, tuple) else v) for k, v in dataclasses.asdict(config).items()}
