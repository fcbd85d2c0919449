"""Matrices, ranges, bit depths, HDR: colours come out as they were meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctxedit.media.probe import probe
from ctxedit.media.read import read_frames

from .clips import ffmpeg

PATCHES = np.array(
    [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (128, 128, 128), (235, 235, 235)], np.uint8
)
_SIDE = 16


def _patches(values: np.ndarray) -> np.ndarray:
    """(1, 16, 16·n, 3): one square for each colour."""
    return np.repeat(np.repeat(values[None, None], _SIDE, 1), _SIDE, 2)


def _centres(frame: np.ndarray) -> np.ndarray:
    return frame[_SIDE // 2, _SIDE // 2 :: _SIDE].astype(int)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("range_", ["tv", "pc"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuv444p"])
def test_matrix_range_and_depth(tmp_path: Path, matrix: str, range_: str, pixels: str) -> None:
    picture = _patches(PATCHES)
    height, width = picture.shape[1:3]
    name = {"smpte170m": "bt601", "bt2020nc": "bt2020"}.get(matrix, matrix)
    path = tmp_path / "clip.mp4"
    ffmpeg(
        *("-f", "rawvideo", "-s", f"{width}x{height}", "-pix_fmt", "rgb24", "-i", "-"),
        *("-vf", f"scale=out_color_matrix={name}:out_range={range_}", "-pix_fmt", pixels),
        *("-colorspace", matrix, "-color_range", range_, "-crf", 1, path),
        stdin=picture.tobytes(),
    )
    assert np.abs(_centres(read_frames(path, frames=1).frames[0]) - PATCHES).max() <= 3


M1, M2, C1, C2, C3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875


def _pq(nits: np.ndarray) -> np.ndarray:
    """ST 2084, of light in cd/m²."""
    power = (nits / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def _hlg(nits: np.ndarray) -> np.ndarray:
    """BT.2100, of the light of a display of 1000 cd/m²: inverse OOTF, then OETF."""
    luminance = nits @ np.array([0.2627, 0.6780, 0.0593])
    scene = nits / 1000 * np.maximum(luminance / 1000, 1e-12)[..., None] ** (1 / 1.2 - 1)
    curve = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-12)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), curve)


def _hdr(folder: Path, nits: np.ndarray, transfer: str, primaries: str = "bt2020") -> Path:
    """Patches of light in cd/m², BT.2020 primaries, as a ten-bit film."""
    code = {"smpte2084": _pq, "arib-std-b67": _hlg}.get(transfer, lambda light: (light / 100) ** (1 / 2.4))(
        nits
    )
    picture = _patches(np.rint(code * 65535).astype("<u2"))
    height, width = picture.shape[1:3]
    path = folder / f"{transfer}.mkv"
    tags = f"setparams=color_trc={transfer}:color_primaries={primaries}:colorspace=bt2020nc:range=tv"
    ffmpeg(
        *("-f", "rawvideo", "-s", f"{width}x{height}", "-pix_fmt", "rgb48le", "-i", "-"),
        *("-vf", f"scale=out_color_matrix=bt2020:out_range=tv,format=yuv444p10le,{tags}"),
        *("-c:v", "ffv1", path),
        stdin=picture.tobytes(),
    )
    return path


#: BT.2020 light of BT.709's red, green and blue.
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_tone_mapped(tmp_path: Path, transfer: str) -> None:
    grey = np.array([0.0, 5, 26, 50, 100, 203, 500, 1000])
    path = _hdr(tmp_path, np.repeat(grey[:, None], 3, 1), transfer)
    info = probe(path)
    assert info.converted is not None and "HDR" in info.converted and info.bit_depth == 10
    assert [note for note in info.notes if "tone-mapped" in note]
    got = _centres(read_frames(path, frames=1).frames[0])
    assert np.ptp(got, axis=1).max() <= 2  # grey stays grey
    level = got.mean(1)
    # Below the knee light is kept, relative to diffuse white, for a display of gamma 2.4.
    assert level[:4] == pytest.approx(255 * (grey[:4] / 203) ** (1 / 2.4), abs=3)
    # White is nearly SDR's white, and highlights still differ.
    assert 220 < level[5] < 240 and np.all(np.diff(level) > 1) and level[7] > 252


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_colours_of_bt709_keep_their_hue(tmp_path: Path, transfer: str) -> None:
    colours = np.array([(60, 0, 0), (0, 60, 0), (0, 0, 60), (60, 60, 0), (40, 20, 10)], float)
    got = _centres(read_frames(_hdr(tmp_path, colours @ TO_2020.T, transfer), frames=1).frames[0])
    assert got == pytest.approx(255 * (colours / 203) ** (1 / 2.4), abs=14)


def test_wide_gamut_without_hdr(tmp_path: Path) -> None:
    colours = np.array([(60, 0, 0), (0, 60, 0), (40, 40, 40), (40, 20, 10)], float)
    path = _hdr(tmp_path, colours @ TO_2020.T, "bt2020-10")
    assert probe(path).converted == "BT.2020 (wide gamut)"
    got = _centres(read_frames(path, frames=1).frames[0])
    assert got == pytest.approx(255 * (colours / 100) ** (1 / 2.4), abs=14)
