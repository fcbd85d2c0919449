"""What every upscaler does: denoise from shared noise, conditioned on the low-resolution frames and on words.

Frames of a clip start from the same noise, get the same noise augmentation, and attend to the first frame
besides themselves, so that what the model adds does not flicker (Wu et al. 2023; Khachatryan et al. 2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.config import UpscaleConfig
from ctxedit.errors import NumericsError
from ctxedit.media.scratch import release
from ctxedit.models.attention import FrameView, frame_attention
from ctxedit.models.sites import sites_of_unet

#: Side of the result over that of the frames.
SCALE = 4
#: Frames that are denoised together; the first frame of the clip is with each chunk.
CHUNK = 8


@dataclass(frozen=True)
class UpscaleSampling:
    """Few settings of a pass: ``steps``, noise added to the low resolution (a timestep), guidance scale."""

    steps: int
    noise_level: int
    guidance_scale: float

    @property
    def branches(self) -> int:
        """Passes of the network per step."""
        return 1 if self.guidance_scale == 1 else 2


class Upscaler(ABC):
    """A loaded upscaler. Subclasses define what is denoised and how it becomes pixels.

    Attributes:
        name: what messages call it.
        unet, text_encoder, tokenizer: the stock networks.
        scheduler: a ``DDIMScheduler`` of the denoised tensor.
        low_res_scheduler: a ``DDPMScheduler`` of the noise augmentation.
        defaults: used where the settings leave a value to the model.
    """

    defaults: ClassVar[UpscaleSampling]
    #: The network's output times this is the prediction that the scheduler wants.
    unit: ClassVar[float] = 1.0

    def __init__(self, name: str, loaded: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.unet, self.text_encoder = loaded["unet"], loaded["text_encoder"]
        self.tokenizer = loaded["tokenizer"]
        self.scheduler, self.low_res_scheduler = loaded["scheduler"], loaded["low_res_scheduler"]
        #: Sides of the low resolution are padded to a multiple of this.
        self.multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of the denoised tensor, at the low resolution."""

    @abstractmethod
    def network_input(self, noisy: Tensor, timestep: Tensor, low: Tensor) -> Tensor:
        """What the network is shown of the noisy tensor (N, C, h, w) and the low resolution (N, 3, h, w)."""

    @abstractmethod
    def decode(self, clean: Tensor, low: Tensor) -> Tensor:
        """Pixels (N, 3, 4h, 4w), about [−1, 1], of the denoised (N, C, h, w) and of what it was given."""

    @torch.no_grad()
    def upscale(
        self,
        frames: NDArray[np.uint8],
        text: str,
        config: UpscaleConfig,
        seed: int,
        clip: bool = True,
        progress: Callable[[int, int], None] = lambda done, total: None,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Frames at four times their size, :data:`CHUNK` frames at a time.

        Args:
            frames: RGB uint8 (F, h, w, 3), of any size; may be mapped.
            text: what they show.
            config: steps, noise level and guidance scale, where they are not the model's own.
            seed: of the noise.
            clip: the frames are one clip: they share the noise and see the first. Otherwise they are pictures
                that have nothing to do with each other.
            progress: called with (done, total) chunks × steps.
            out: where the result goes, uint8 (F, 4h, 4w, 3); may be mapped. A new array where not given. Of
                mapped arrays one chunk is in memory.

        Returns:
            ``out``: RGB uint8 (F, 4h, 4w, 3).

        Raises:
            NumericsError: NaN or infinity appeared.
        """
        how = sampling_of(config, self.defaults)
        count, (height, width) = len(frames), frames.shape[1:3]
        generator = torch.Generator().manual_seed(seed)
        drawn, sides = 1 if clip else count, (self._padded_side(height), self._padded_side(width))
        noise = torch.randn(drawn, self.channels, *sides, generator=generator)
        grain = torch.randn(drawn, 3, *sides, generator=generator)
        tokens = self.embed(["", text] if how.branches == 2 else [text])
        if out is None:
            out = np.empty((count, height * SCALE, width * SCALE, 3), np.uint8)
        chunks = _chunks(count, clip)
        with frame_attention(self.unet, sites_of_unet(self.unet)):
            for number, chunk in enumerate(chunks):
                pick = torch.tensor([0] * len(chunk) if clip else chunk)
                told = partial(_tell, progress, number * how.steps, how.steps * len(chunks))
                low = self._padded(frames[chunk])
                pixels = self._denoise(low, noise[pick], grain[pick], tokens, how, clip, told)
                known = 1 if clip and number else 0  # the first frame is done with the first chunk
                pixels = pixels[known:, :, : height * SCALE, : width * SCALE]
                out[chunk[known:]] = pixels.permute(0, 2, 3, 1).numpy()
                release(frames, out)
        return out

    def _denoise(
        self,
        low: Tensor,
        noise: Tensor,
        grain: Tensor,
        tokens: Tensor,
        how: UpscaleSampling,
        clip: bool,
        step_done: Callable[[int], None],
    ) -> Tensor:
        """One chunk, whose first frame is the clip's: uint8 (N, 3, 4h, 4w) on the CPU."""
        n, branches = len(low), how.branches
        level = torch.full((n,), how.noise_level, dtype=torch.long)
        if how.noise_level:  # the scheduler's level 0 has some noise already
            low = self.low_res_scheduler.add_noise(low, grain, level)
        low = low.to(self.device, self.dtype)
        self.scheduler.set_timesteps(how.steps, device=self.device)
        x = (noise * self.scheduler.init_noise_sigma).to(self.device)
        attended = tuple((0, i) if clip and i else (i,) for i in range(n))
        view = FrameView(attended, (low.shape[2], low.shape[3]), branches)
        rows = tokens.repeat_interleave(n, 0)
        labels = level.to(self.device).repeat(branches)
        for done, t in enumerate(self.scheduler.timesteps, 1):
            given = self.network_input(x, t, low)
            with view.in_effect():
                out = (
                    self.unet(given.repeat(branches, 1, 1, 1), t, rows, class_labels=labels).sample.float()
                    * self.unit
                )
            if branches == 2:
                without, with_text = out.chunk(2)
                out = without + how.guidance_scale * (with_text - without)
            x = self.scheduler.step(out, t, x).prev_sample
            step_done(done)
        pixels = self.decode(x, low).float()
        if not bool(torch.isfinite(pixels).all()):
            raise NumericsError(f"{self.name} gave NaN or infinity", "try --dtype float32")
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    def _padded(self, frames: NDArray[np.uint8]) -> Tensor:
        """RGB (F, 3, h, w) in [−1, 1]; the last row and column repeated up to the network's multiples."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        more = [self._padded_side(side) - side for side in frames.shape[1:3]]
        return F.pad(pixels, (0, more[1], 0, more[0]), mode="replicate")

    def _padded_side(self, side: int) -> int:
        return side + -side % self.multiple

    def embed(self, texts: list[str]) -> Tensor:
        """(N, L, D); words that are too many for the text encoder are cut."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        tokens: Tensor = self.text_encoder(ids.to(self.device)).last_hidden_state
        return tokens.to(self.dtype)


def _tell(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def sampling_of(config: UpscaleConfig, defaults: UpscaleSampling) -> UpscaleSampling:
    """The settings, with the model's own values where they leave them to it."""
    return UpscaleSampling(
        config.steps or defaults.steps,
        defaults.noise_level if config.noise_level < 0 else config.noise_level,
        config.guidance_scale or defaults.guidance_scale,
    )


def chunk_count(frames: int, clip: bool = True) -> int:
    """How many chunks :meth:`Upscaler.upscale` makes of that many frames."""
    return max(1, math.ceil((frames - 1) / (CHUNK - 1))) if clip else math.ceil(frames / CHUNK)


def _chunks(count: int, clip: bool) -> list[list[int]]:
    if not clip:
        return [list(range(i, min(i + CHUNK, count))) for i in range(0, count, CHUNK)]
    rest = list(range(1, count))
    return [[0, *rest[i : i + CHUNK - 1]] for i in range(0, max(1, len(rest)), CHUNK - 1)]
