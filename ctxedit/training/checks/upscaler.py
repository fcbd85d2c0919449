"""The check of super-resolution: held-out scenes against the same scenes drawn large, and bicubic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctxedit.config import UpscaleConfig
from ctxedit.editing.reporter import Reporter
from ctxedit.metrics import formulas as metrics
from ctxedit.metrics import intervals
from ctxedit.metrics.flow import warp_error
from ctxedit.models.upscalers import pixels
from ctxedit.models.upscalers.base import SCALE, Upscaler
from ctxedit.models.upscalers.checkpoints import locate_upscaler, open_upscaler
from ctxedit.models.weights import network
from ctxedit.synthetic import scenes
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow

_SIZE, _FRAMES = 256, 8
_SETTINGS = UpscaleConfig(scale=SCALE)


@dataclass
class _Figures:
    """One number per picture: PSNR and gain over bicubic in dB; per clip: warp errors."""

    psnr: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    gain_decoded: list[float] = field(default_factory=list)
    warp: list[float] = field(default_factory=list)
    warp_bicubic: list[float] = field(default_factory=list)


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """Measure on ``count`` pictures and ``pairs`` clips:

    - PSNR against the scene drawn at 256 pixels, and its gain over bicubic interpolation, of frames that are
      averages of it, and of these reconstructed by the autoencoder;
    - warp error along the flow of the clip drawn large, as a multiple of bicubic's.
    """
    device = torch.device("cpu")
    upscaler = open_upscaler(locate_upscaler(str(config.find("upscaler")), None), device, torch.float32)
    vae, figures = _autoencoder(config.find("vae")), _Figures()
    held_out = config.held_out(0.08)
    clips = held_out[: config.pairs]
    with reporter.task("check upscaler", len(held_out) + len(clips)) as progress:
        for done, scene in enumerate(held_out, 1):
            drawn = scenes.render_frame(scene, 0.3, _SIZE)[0][None]
            low = averaged(drawn)
            psnr, gain = _gain(upscaler, low, drawn, scene)
            figures.psnr.append(psnr)
            figures.gain.append(gain)
            figures.gain_decoded.append(_gain(upscaler, _decoded(vae, low), drawn, scene)[1])
            progress(done, f"gain {np.mean(figures.gain):.2f} dB")
        for done, scene in enumerate(clips, len(held_out) + 1):
            _measure_clip(upscaler, scene, figures)
            progress(done, "")
    yield from _rows(figures)


def averaged(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB uint8 (F, H, W, 3) averaged over blocks of 4×4 pixels."""
    count, height, width = frames.shape[:3]
    blocks = frames.reshape(count, height // SCALE, SCALE, width // SCALE, SCALE, 3)
    return np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def interpolated(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB uint8 (F, h, w, 3) enlarged four times by bicubic interpolation."""
    low = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    large = ((pixels.bicubic(low).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return large.permute(0, 2, 3, 1).numpy()


def _autoencoder(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    return network(AutoencoderKL, folder.parent, folder.name, torch.float32).eval().requires_grad_(False)


def _decoded(vae: Any, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB uint8 (F, h, w, 3) encoded and decoded again."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    out = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return ((out + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _gain(
    upscaler: Upscaler, low: NDArray[np.uint8], drawn: NDArray[np.uint8], scene: scenes.Scene
) -> tuple[float, float]:
    """PSNR in dB, and its gain over bicubic's."""
    out = upscaler.upscale(low, scenes.caption(scene), _SETTINGS, 0)
    psnr, plain = (metrics.psnr(drawn, one) or 0.0 for one in (out, interpolated(low)))
    return psnr, psnr - plain


def _measure_clip(upscaler: Upscaler, scene: scenes.Scene, figures: _Figures) -> None:
    drawn, _ = scenes.render(scene, _FRAMES, _SIZE)
    low = averaged(drawn)
    out = upscaler.upscale(low, scenes.caption(scene), _SETTINGS, 0)
    errors = [warp_error(drawn, one) for one in (out, interpolated(low))]
    if errors[0] is not None and errors[1] is not None:
        figures.warp.append(errors[0])
        figures.warp_bicubic.append(errors[1])


def _rows(figures: _Figures) -> Iterator[CheckRow]:
    more = (
        ("PSNR, dB", figures.psnr, 30.0),
        ("PSNR over bicubic's, dB", figures.gain, 2.0),
        ("PSNR over bicubic's, decoded frames, dB", figures.gain_decoded, 2.0),
    )
    for name, values, wanted in more:
        interval = intervals.of_mean(values)
        yield CheckRow("upscaler", name, float(np.mean(values)), wanted, len(values), interval)
    warp, plain = np.array(figures.warp), np.array(figures.warp_bicubic)
    if len(warp):
        row = partial(CheckRow, "upscaler", "warp error over bicubic's", _ratio(warp, plain), 1.5, len(warp))
        yield row(interval=_interval(warp, plain), lower=True)


def _ratio(warp: NDArray[np.float64], plain: NDArray[np.float64]) -> float:
    return float(warp.sum() / max(float(plain.sum()), 1e-12))


def _interval(warp: NDArray[np.float64], plain: NDArray[np.float64]) -> intervals.Bounds:
    """Jackknife interval over clips of the ratio of sums; None for too few clips."""
    if len(warp) < intervals.GROUPS:
        return None
    group = intervals.groups_of(len(warp))
    without = [_ratio(warp[group != left], plain[group != left]) for left in range(intervals.GROUPS)]
    return intervals.jackknife(_ratio(warp, plain), without)


CHECK = Check("upscaler", ("upscaler", "vae", "text_encoder"), measure)
