"""Upscalers of both kinds through one interface: sizes, shared noise, attention to the first frame."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_pixel_upscaler, make_x4_upscaler

from ctxedit.config import UpscaleConfig
from ctxedit.errors import WeightsError
from ctxedit.media.geometry import resize
from ctxedit.media.scratch import scratch
from ctxedit.models.upscalers import pixels
from ctxedit.models.upscalers.base import CHUNK, chunk_count, sampling_of
from ctxedit.models.upscalers.checkpoints import X4_UPSCALER, locate_upscaler, open_upscaler, sizes_of
from ctxedit.models.upscalers.networks import LatentUpscaler, PixelUpscaler

CPU = torch.device("cpu")
CONFIG = UpscaleConfig(4, steps=2)


@pytest.fixture(scope="session")
def x4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_x4_upscaler(tmp_path_factory.mktemp("x4"))


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pixel_upscaler(tmp_path_factory.mktemp("own") / "upscaler")


@pytest.fixture(scope="module", params=["own", "x4"])
def upscaler(request: pytest.FixtureRequest):
    folder = request.getfixturevalue(request.param)
    return open_upscaler(locate_upscaler(str(folder), None), CPU, torch.float32)


def clip(frames: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


def mapped_bytes(array: np.ndarray) -> int:
    """Bytes of a mapped array that are in memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    start = f"{array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE:x}-"
    lines = Path("/proc/self/smaps").read_text().split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(start))
    return 1024 * int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])


def test_folding_is_undone():
    picture = torch.randn(2, 3, 16, 8)
    assert torch.equal(pixels.unfold(pixels.fold(picture)), picture)
    assert pixels.fold(picture).shape == (2, pixels.FOLDED, 4, 2)


def test_any_size_comes_out_four_times_as_large(upscaler):
    told = []
    frames = clip(3, 11, 9)
    out = upscaler.upscale(
        frames, "a cat", CONFIG, 0, progress=lambda done, total: told.append((done, total))
    )
    assert out.shape == (3, 44, 36, 3) and out.dtype == np.uint8
    assert told == [(1, 2), (2, 2)]


def test_a_still_clip_stays_still(upscaler):
    frames = np.repeat(clip(1), 3, 0)
    out = upscaler.upscale(frames, "a cat", CONFIG, 0)
    assert np.abs(out.astype(int) - out[:1]).max() <= 1  # the batch's place may round differently


def test_pictures_get_noise_of_their_own(upscaler):
    frames = np.repeat(clip(1), 2, 0)
    out = upscaler.upscale(frames, "a cat", CONFIG, 0, clip=False)
    assert np.abs(out[0].astype(int) - out[1]).max() > 1


def test_seed_decides(upscaler):
    once, again, other = (upscaler.upscale(clip(1), "a cat", CONFIG, seed) for seed in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_frames_see_the_first(upscaler):
    """A frame's result depends on the first frame, not on the others."""
    frames = clip(3)
    out = upscaler.upscale(frames, "a cat", CONFIG, 0).astype(int)
    changed = frames.copy()
    changed[0] = 255 - changed[0]
    first = upscaler.upscale(changed, "a cat", CONFIG, 0).astype(int)
    changed = frames.copy()
    changed[1] = 255 - changed[1]
    second = upscaler.upscale(changed, "a cat", CONFIG, 0).astype(int)
    assert not np.array_equal(first[2], out[2])
    assert np.array_equal(second[2], out[2])


def test_chunks_give_what_one_pass_gives(upscaler):
    """A clip longer than a chunk: each frame as if it had been upscaled beside the first alone."""
    frames = clip(CHUNK + 2, 4, 4)
    assert chunk_count(len(frames)) == 2
    out = upscaler.upscale(frames, "a cat", CONFIG, 0).astype(int)
    pair = upscaler.upscale(frames[[0, -1]], "a cat", CONFIG, 0).astype(int)
    assert len(out) == len(frames)
    assert np.abs(out[[0, -1]] - pair).max() <= 1


def test_a_mapped_clip_gives_what_one_in_memory_gives(upscaler, tmp_path):
    frames = clip(CHUNK + 2, 6, 7)
    mapped = scratch(tmp_path, frames.shape, np.uint8)
    mapped[:] = frames
    out = scratch(tmp_path, (len(frames), 24, 28, 3), np.uint8)
    assert upscaler.upscale(mapped, "a cat", CONFIG, 0, out=out) is out
    assert np.array_equal(out, upscaler.upscale(frames, "a cat", CONFIG, 0))


@pytest.mark.skipif(
    not Path("/proc/self/smaps").is_file(), reason="the memory of a mapping is asked of Linux"
)
def test_of_a_mapped_clip_one_chunk_is_in_memory(upscaler, tmp_path, monkeypatch):
    frames = scratch(tmp_path, (3 * CHUNK, 128, 128, 3), np.uint8)
    out = scratch(tmp_path, (3 * CHUNK, 512, 512, 3), np.uint8)
    resident, sizes = [], []

    def denoise(low, noise, grain, tokens, how, clip, told):
        resident.append(sum(mapped_bytes(array) for array in (frames, out)))
        sizes.append(len(low))
        return torch.zeros(len(low), 3, 512, 512, dtype=torch.uint8)

    monkeypatch.setattr(upscaler, "_denoise", denoise)
    upscaler.upscale(frames, "a cat", CONFIG, 0, out=out)
    assert sizes == [CHUNK, CHUNK, CHUNK, 3]
    chunk = CHUNK * 128 * 128 * 3
    assert max(resident) < 2 * chunk < out.nbytes / 16


def test_words_matter(upscaler):
    config = UpscaleConfig(4, steps=2, guidance_scale=5.0)
    a, b = (upscaler.upscale(clip(1), text, config, 0) for text in ("a cat", "a red car in the snow"))
    assert not np.array_equal(a, b)


def test_without_a_residual_it_is_bicubic(tmp_path: Path):
    folder = make_pixel_upscaler(tmp_path / "upscaler", scale=0.0)
    upscaler = open_upscaler(locate_upscaler(str(folder), None), CPU, torch.float32)
    smooth = np.tile(np.linspace(40, 200, 16).astype(np.uint8)[None, None, :, None], (1, 16, 1, 3))
    out = upscaler.upscale(smooth, "a cat", CONFIG, 0)
    inside = slice(12, -12)
    wanted = resize(smooth, 64, 64)
    assert np.abs(out[:, inside, inside].astype(int) - wanted[:, inside, inside]).max() <= 2


def test_the_models_defaults_fill_what_settings_leave():
    assert sampling_of(UpscaleConfig(4), LatentUpscaler.defaults) == LatentUpscaler.defaults
    told = sampling_of(UpscaleConfig(4, steps=7, noise_level=0, guidance_scale=1.0), LatentUpscaler.defaults)
    assert (told.steps, told.noise_level, told.branches) == (7, 0, 1)


def test_kinds_are_told_apart(own: Path, x4: Path):
    assert locate_upscaler(str(own), None).kind is PixelUpscaler
    assert locate_upscaler(str(own.parent), None).path == own  # the folder that it was trained into
    assert locate_upscaler(str(x4), None).kind is LatentUpscaler
    assert sizes_of(locate_upscaler(str(x4), None)).vae.parameters > 0


def test_real_checkpoints_take_the_x4_upscaler():
    with pytest.raises(WeightsError, match=X4_UPSCALER):
        locate_upscaler("auto", None, offline=True)


def test_what_is_no_upscaler_is_refused(tmp_path: Path, stable_diffusion: Path):
    for folder, words in (
        (stable_diffusion, "is a StableDiffusionPipeline, not an upscaler"),
        (stable_diffusion / "unet", "is not an upscaler"),
        (make_x4_upscaler(tmp_path, in_channels=4), "takes 4 channels, not 7"),
        (tmp_path / "nothing", "no folder or hub id"),
    ):
        with pytest.raises(WeightsError, match=words):
            locate_upscaler(str(folder), None)


def test_missing_weights_are_refused(tmp_path: Path):
    folder = make_pixel_upscaler(tmp_path / "upscaler")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no safetensors weights"):
        locate_upscaler(str(folder), None)
