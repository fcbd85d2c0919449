"""What settings need of a model: attention layers of some size, layers to tune, steps.

Which attention layers there are is known from the model's config files, as :mod:`ctxedit.models.sites`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ctxedit.config import Config
from ctxedit.errors import ConfigError
from ctxedit.models.adapter import adapter_to_start_from
from ctxedit.models.attention import make_kernel
from ctxedit.models.backbones import Backbone, split_words
from ctxedit.models.sites import AttentionSite, halvings_at
from ctxedit.models.sizes import Sizes
from ctxedit.patterns import attended_frames
from ctxedit.prompts import plain, weighted
from ctxedit.stages.kept_source import layers_of_step
from ctxedit.stages.passes import fused_counts
from ctxedit.stages.tune import ADAPTER, CONTROL, TEMPORAL, TEMPORAL_CONV


def check_settings(config: Config, body: Sizes) -> None:
    """Raise ConfigError for settings that the model cannot serve at any size."""
    attended_frames(config.attention, config.clip.frames)
    make_kernel(config.attention.backend)
    steps = max(config.edit.steps, config.invert.steps)
    if steps > body.train_steps:
        raise ConfigError(
            f"{steps} steps, but the model was trained with {body.train_steps}",
            f"take fewer: --steps {min(20, body.train_steps)}",
        )
    _check_norms(config, body)
    _check_channels(config, body)
    _check_temporal(config, body)
    if config.tune.steps:
        _check_trained(config, body)
    if config.adapter.enabled and config.tune.adapter_init == "pretrained":
        adapter_to_start_from(config)


def check_cache(config: Config, body: Sizes, family: type[Backbone]) -> None:
    """Raise ConfigError where deep features are to be reused and the model has none."""
    if config.edit.cache_interval > 1 and not (family.reuses_features and len(body.channels) > 1):
        raise ConfigError(
            f"edit.cache_interval = {config.edit.cache_interval}: this model has no deep features to reuse",
            "leave it at 1",
        )


def check_kept_source(config: Config, windows: int) -> None:
    """Raise ConfigError where the source's branch is to be kept and no edit could use it."""
    if config.keep_source != "on":
        return
    if windows > 1:
        raise ConfigError(
            f"keep_source = 'on': the clip is edited in {windows} windows, which do not keep the source",
            "leave it at auto",
        )
    if not any(layers_of_step(config, step) for step in range(config.edit.steps)):
        raise ConfigError(
            "keep_source = 'on': there are no steps with attention fusion or masks from words",
            "leave it at auto",
        )


def check_layers(config: Config, body: Sizes, heatmaps: bool = False) -> None:
    """Raise ConfigError where fusion, its mask or heat maps take attention layers that the model lacks.

    Args:
        config: settings.
        body: the model's sizes.
        heatmaps: whether heat maps are asked for.
    """
    fusion, steps = config.fusion, config.edit.steps
    fuses = config.edit.start == "inversion"
    layers = {site.halvings for site in _cross(body)}
    fuses_self, fuses_cross = fused_counts(fusion, steps)
    coarsest = max(layers, default=0)
    if fuses and (fuses_self or fuses_cross) and layers and halvings_at(fusion.max_resolution) > coarsest:
        raise ConfigError(
            f"fusion.max_resolution = {fusion.max_resolution:g}: this model has no layers that low"
            " in resolution",
            f"its lowest resolution is {_share(coarsest)} of the latent's side: "
            f"--set fusion.max_resolution={_share(coarsest)} or more",
        )
    masks = fuses and (fusion.blend == "latent" or (fusion.blend == "self" and fuses_self > 0))
    if (masks or heatmaps) and halvings_at(fusion.mask_resolution) not in layers:
        if not layers:
            raise ConfigError("this model has no cross-attention for masks", "--set fusion.blend=none")
        nearest = min(layers, key=lambda level: abs(level + math.log2(fusion.mask_resolution)))
        shares = ", ".join(_share(level) for level in sorted(layers))
        raise ConfigError(
            f"fusion.mask_resolution = {fusion.mask_resolution:g}: this model has no attention layers of "
            "that resolution",
            f"it has them at {shares} of the latent's side: --set fusion.mask_resolution={_share(nearest)}",
        )


def check_words(config: Config, prompt: str | None, targets: Sequence[str]) -> None:
    """Raise ConfigError for word weights and replacements that the prompts' words do not allow.

    As :func:`ctxedit.models.alignment.align` does once prompts are tokens; a prompt of None is not known yet.
    """
    fusion, in_text = config.fusion, next((target for target in targets if weighted(target)[1]), None)
    if config.edit.start != "inversion":
        if in_text is not None:
            raise ConfigError(
                f"the weights in “{in_text[:60]}” have no effect: edits from noise have no fusion",
                "write the target without them, or --set edit.start=inversion",
            )
        return
    if (
        (fusion.word_weights or in_text is not None)
        and fusion.word_weights_where == "fused"
        and not fused_counts(fusion, config.edit.steps)[1]
    ):
        raise ConfigError(
            f"{'fusion.word_weights has' if in_text is None else 'the weights of words have'} no effect: "
            "it acts in steps with cross-attention fusion, and there are none",
            "--set fusion.word_weights_where=everywhere, or a larger fusion.cross_replace_steps",
        )
    for target in targets:
        words = split_words(plain(target))
        absent = [
            word for word in config.fusion.word_weights if word.lower() not in {w.lower() for w in words}
        ]
        if absent:
            raise ConfigError(
                f"fusion.word_weights: the target “{target[:60]}” has no word {absent[0]!r}",
                "give whole words of the target",
            )
        source = words if prompt is None else split_words(prompt)
        if config.fusion.cross == "replace" and len(source) != len(words):
            raise ConfigError(
                "fusion.cross = 'replace' needs as many words in both prompts "
                f"({len(source)} and {len(words)})",
                "use 'refine', or 'auto'",
            )


def _check_norms(config: Config, body: Sizes) -> None:
    named = any(".resnets." in name for name in body.unet_names)
    if config.attention.group_norm == "clip" and body.unet_names and not named:
        raise ConfigError(
            "attention.group_norm = 'clip': this model has no residual blocks with group norms",
            "--set attention.group_norm=frame",
        )


def _check_channels(config: Config, body: Sizes) -> None:
    attention, widths = config.attention, [site.channels for site in body.sites if site.kind == "self"]
    if attention.frames != "none" and widths and attention.min_channels > max(widths):
        raise ConfigError(
            f"attention.min_channels = {attention.min_channels}: this model's widest attention layers have "
            f"{max(widths)} channels, so no frame would attend to another",
            f"its layers have {', '.join(map(str, sorted(set(widths))))}: "
            f"--set attention.min_channels={max(widths)} or less",
        )


def _check_temporal(config: Config, body: Sizes) -> None:
    if not config.attention.temporal:
        return
    if not _cross(body):
        raise ConfigError(
            "attention.temporal: this model has no transformer blocks", "--set attention.temporal=false"
        )
    if config.attention.temporal_init == "copy" and all(site.middle for site in _cross(body)):
        raise ConfigError(
            "attention.temporal_init = 'copy': this model has transformer blocks in its middle block only",
            "--set attention.temporal_init=zero",
        )


def _check_trained(config: Config, body: Sizes) -> None:
    """As :func:`ctxedit.stages.tune.trainable` selects, by the names of the stored tensors."""
    found = 0
    for name in config.tune.trainable_modules:
        if name == ADAPTER:
            found += config.adapter.enabled  # a preset may list it and a flag switch the adapter off
        elif name.startswith(CONTROL):
            found += config.control.kind != "none"  # a preset may list it, and a setting switch it off
        elif name == TEMPORAL:
            if not config.attention.temporal:
                raise ConfigError(
                    "tune.trainable_modules names temporal, and there are no temporal layers",
                    "--set attention.temporal=true, or leave it out of tune.trainable_modules",
                )
            found += 1
        elif name == TEMPORAL_CONV:
            if not config.attention.temporal_conv_rank:
                raise ConfigError(
                    "tune.trainable_modules names temporal_conv, and there are no temporal convolutions",
                    "--set attention.temporal_conv_rank=160, or leave it out of tune.trainable_modules",
                )
            found += 1
        elif body.unet_names and not any(f".{name}." in f".{key}." for key in body.unet_names):
            raise ConfigError(
                f"tune.trainable_modules: {name!r} matches nothing",
                "e.g. attn1.to_q, attn1, temporal, adapter",
            )
        else:
            found += 1
    if not found:
        raise ConfigError(
            "tune.trainable_modules names nothing that this model has",
            "name modules that it has, or set tune.steps = 0",
        )


def _cross(body: Sizes) -> list[AttentionSite]:
    """The model's cross-attention: one layer in each transformer block."""
    return [site for site in body.sites if site.kind == "cross"]


def _share(level: int) -> str:
    return f"{2.0**-level:g}"
