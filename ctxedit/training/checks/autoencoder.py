"""The check of the autoencoder: reconstruction of held-out scenes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ctxedit.editing.reporter import Reporter
from ctxedit.metrics import formulas as metrics
from ctxedit.synthetic import scenes
from ctxedit.training.checks.base import Check, CheckConfig, CheckRow


def measure(config: CheckConfig, reporter: Reporter) -> Iterator[CheckRow]:
    """PSNR and SSIM of decoded frames."""
    frames = np.stack([scenes.render_frame(s, 0.3)[0] for s in config.held_out(0.08)])
    backbone = config.backbone()
    with reporter.task("check autoencoder", 1) as progress:
        decoded = backbone.decode(backbone.encode(frames))
        progress(1, "")
    psnr = [metrics.psnr(a[None], b[None]) or 0.0 for a, b in zip(frames, decoded, strict=True)]
    row = partial(CheckRow, "autoencoder", count=config.count)
    yield row("PSNR, dB", float(np.mean(psnr)), 30.0)
    yield row("SSIM", metrics.ssim(frames, decoded) or 0.0, 0.95)


CHECK = Check("autoencoder", ("vae",), measure)
