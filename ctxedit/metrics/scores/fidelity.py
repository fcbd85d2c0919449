"""Pixels against the source's, and against the true edit's.

PSNR and SSIM are our own and not torchmetrics': importing 1.9.0 costs 1.8 s of CPU time and 130 MB, and fails
where an installed torchvision does not fit torch; its SSIM counts reflected borders (0.0004 lower on noise),
and neither takes a mask. Without the borders SSIM agrees to 1e-15, and PSNR in single precision.
"""

from __future__ import annotations

from ctxedit.metrics import Edit, formulas, metric

#: SSIM's window does not fit a smaller picture.
_SMALLEST = 11


@metric(
    "psnr_kept",
    title="PSNR kept",
    needs="source mask",
    better="higher",
    decimals=1,
    where="eval bench",
    order=70,
    infinite=formulas.PSNR_MOST,
)
def psnr_kept(edit: Edit) -> float | None:
    """dB against the source where the edit should change nothing"""
    assert edit.source is not None
    return formulas.psnr(edit.frames, edit.source, edit.unchanged)


@metric(
    "ssim_kept",
    title="SSIM kept",
    needs="source mask",
    better="higher",
    decimals=3,
    where="eval bench",
    order=80,
)
def ssim_kept(edit: Edit) -> float | None:
    """structural similarity in the same place"""
    assert edit.source is not None
    small = min(edit.frames.shape[1:3]) < _SMALLEST
    return None if small else formulas.ssim(edit.frames, edit.source, edit.unchanged)


@metric(
    "psnr", title="PSNR", needs="source", better="higher", decimals=1, order=90,
    infinite=formulas.PSNR_MOST,
)  # fmt: skip
def psnr(edit: Edit) -> float | None:
    """dB against the source, whole frames"""
    assert edit.source is not None
    return formulas.psnr(edit.frames, edit.source)


@metric("ssim", title="SSIM", needs="source", better="higher", decimals=3, where="run eval", order=95)
def ssim(edit: Edit) -> float | None:
    """structural similarity to the source, whole frames"""
    assert edit.source is not None
    return None if min(edit.frames.shape[1:3]) < _SMALLEST else formulas.ssim(edit.frames, edit.source)


@metric(
    "psnr_ideal", title="PSNR ideal", needs="reference", better="higher", decimals=1, where="bench",
    order=100, infinite=formulas.PSNR_MOST,
)  # fmt: skip
def psnr_ideal(edit: Edit) -> float | None:
    """dB against the true edit"""
    assert edit.reference is not None
    return formulas.psnr(edit.frames, edit.reference)
