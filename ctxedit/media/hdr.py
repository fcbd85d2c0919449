"""HDR and wide-gamut frames (BT.2100 HLG and PQ, BT.2020) brought to BT.709, as SDR displays show it.

All of it is display-referred: code values become the light of a 1000 cd/m² display, the brightest of the
three primaries is compressed by the curve of BT.2390 so that hues stay, the primaries are converted, and the
result is encoded for a BT.1886 display. Diffuse white of HDR (203 cd/m², BT.2408) comes out at about 90 % of
SDR's white.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# FFmpeg's numbers, which are those of ITU-T H.273.
_BT2020 = 9
_PQ, _HLG = 16, 18
_NAMES = {_PQ: "HDR (PQ)", _HLG: "HDR (HLG)"}

PEAK = 1000.0  # cd/m², of the display that HLG and nearly all PQ footage is made for
WHITE = 203.0  # cd/m², diffuse white
_GAMMA = 2.4  # BT.1886
_ROWS = 256  # rows converted at once, so that floating point copies stay small
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
_LUMA_709 = np.array([0.2126, 0.7152, 0.0722], np.float32)
# BT.2087: linear light, BT.2020 primaries to BT.709's.
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def described(transfer: int, primaries: int) -> str | None:
    """What footage of these characteristics is, if it has to be converted; None for ordinary footage."""
    if transfer in _NAMES:
        return _NAMES[transfer]
    return "BT.2020 (wide gamut)" if primaries == _BT2020 else None


def to_bt709(rgb: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """Convert one frame.

    Args:
        rgb: (H, W, 3) uint16, full range, non-linear as decoded.
        transfer, primaries: H.273's numbers.

    Returns:
        (H, W, 3) uint8 RGB, BT.709 primaries, for a BT.1886 display.
    """
    out = np.empty(rgb.shape, np.uint8)
    for top in range(0, len(rgb), _ROWS):
        out[top : top + _ROWS] = _strip(rgb[top : top + _ROWS], transfer, primaries)
    return out


def _strip(rgb: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    light = _linear(transfer)[rgb]
    if transfer == _HLG:
        # The display's system gamma of 1.2 acts on luminance.
        luminance = light @ (_LUMA_2020 if primaries == _BT2020 else _LUMA_709)
        light *= np.maximum(luminance, 1e-9)[..., None] ** np.float32(0.2) * np.float32(PEAK / WHITE)
    if transfer in _NAMES:
        strongest = light.max(-1, keepdims=True)
        light *= _compressed(strongest) / np.maximum(strongest, 1e-9)
    if primaries == _BT2020:
        light = light @ _TO_709.T
    return np.rint(255 * np.clip(light, 0, 1) ** np.float32(1 / _GAMMA)).astype(np.uint8)


@lru_cache(maxsize=4)
def _linear(transfer: int) -> NDArray[np.float32]:
    """Light of each 16-bit code value: PQ and SDR relative to diffuse white, HLG the scene's in [0, 1]."""
    signal = np.arange(65536) / 65535
    if transfer == _PQ:
        light = _pq_to_nits(signal) / WHITE
    elif transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**_GAMMA
    return light.astype(np.float32)


def _compressed(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """BT.2390's EETF from `PEAK` to diffuse white, by table: light relative to white in and out."""
    places, values = _curve()
    return np.interp(light, places, values).astype(np.float32)


@lru_cache(maxsize=1)
def _curve() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    top = _nits_to_pq(np.array(PEAK))
    signal = np.linspace(0, 1, 4096)  # PQ, relative to the peak
    most = _nits_to_pq(np.array(WHITE)) / top
    knee = 1.5 * most - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    )
    bent = np.where(signal < knee, signal, spline)
    return _pq_to_nits(signal * top) / WHITE, _pq_to_nits(bent * top) / WHITE


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_to_nits(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """SMPTE ST 2084's EOTF."""
    root = signal ** (1 / _M2)
    return 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _nits_to_pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    power = (nits / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
