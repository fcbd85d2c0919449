"""Super-resolution from 64 to 256 pixels: a pixel-space denoiser of the residual over bicubic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ctxedit.config import Length, Range
from ctxedit.models.upscalers import pixels
from ctxedit.synthetic import composition_captions, compositions, scenes
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.training.components import Components
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.fp16 import save_fp16
from ctxedit.training.memory import build_network
from ctxedit.training.noise import noise_like
from ctxedit.training.settings import MAX_LEVELS, Channels, Channels16, Count, Levels, Share, require
from ctxedit.training.tasks.autoencoder import decibels
from ctxedit.training.tasks.base import Task, register
from ctxedit.training.tasks.encoders import Encoders

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check

#: Shares of compositions, and of low resolutions that are drawn small.
_COMPOSITIONS, _DRAWN_SMALL = 0.2, 0.25


class LargeScenes(Scenes):
    """Frames at the high resolution, and ``small``: the same frame drawn at the low resolution.

    The latter is sharper than the average of the large one, and is what the latent denoiser was trained on.
    A fifth are compositions, whose objects are smaller.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, rng = self.scene(index)
        caption = scenes.caption(scene, rng)
        if rng.random() < _COMPOSITIONS:
            composed = compositions.draw(rng)
            scene, caption = composed.scene, composition_captions.caption(composed, rng)
        t = float(rng.random())
        frame, _ = scenes.render_frame(scene, t, self.size)
        small, _ = scenes.render_frame(scene, t, self.size // pixels.SCALE)
        return {"image": to_tensor(frame), "small": to_tensor(small), "caption": caption}


def random_crops(
    image: Tensor, low: Tensor, size: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same random crops of images at both resolutions.

    Args:
        image: (B, C, 4h, 4h).
        low: (B, C, h, h), the same images at low resolution.
        size: side of a crop, in low-resolution pixels.
        count: crops of each image.

    Returns:
        (B·count, C, 4·size, 4·size) and (B·count, C, size, size), image by image.
    """
    limit = low.shape[-1] - size + 1
    corners = (torch.rand(len(low), count, 2, generator=generator) * limit).long().tolist()

    def cut(images: Tensor, k: int) -> Tensor:
        return torch.stack(
            [
                one[:, k * y : k * (y + size), k * x : k * (x + size)]
                for one, places in zip(images, corners, strict=True)
                for y, x in places
            ]
        )

    return cut(image, pixels.SCALE), cut(low, 1)


@register("upscaler")
class UpscalerTask(Task):
    """Squared error of the residual: two thirds at pure noise, where sampling starts, a third at any level.

    Trained on crops: the high-resolution content of a patch depends only on its surroundings, and many
    patches of many images train better than a few whole images (Dong et al. 2016). The autoencoder, whose
    attention spans the image, is given whole images.

    The low-resolution image is the average of the large one or, for drawn data, the frame drawn small; either
    as it is or reconstructed by the autoencoder, so that the network learns to repair the artefacts of edits
    and generated images. Then noise is added to it (noise-conditioning augmentation, Ho et al.
    2022), with a level that is an input of the network.

    Args:
        components: with ``vae``, ``text_encoder`` and ``tokenizer``.
        data: images and captions; ``data.size`` is the high resolution.
        channels: of each resolution, the first being a quarter of ``data.size``.
        layers: residual blocks of each resolution.
        head: channels of an attention head; there is attention at the lowest resolution only.
        crop: side of a crop, in low-resolution pixels; a multiple of 2 for each lower resolution. 0 trains on
            whole images.
        crops: how many are taken from each image.
        decoded: share of low-resolution images that are reconstructed by the autoencoder.
        augment: highest level of added noise, in timesteps of :func:`~pixels.augmentation_scheduler`.
        empty: share of captions replaced by the empty one.
    """

    folder = "upscaler"
    requires = ("vae", "text_encoder")

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        channels: Annotated[list[Channels16], Levels],
        layers: Annotated[list[Count], Length(0, MAX_LEVELS)],
        head: Channels,
        crop: Annotated[int, Range(0, 8192)] = 0,
        crops: Count = 1,
        decoded: Share = 0.5,
        augment: Annotated[int, Range(0, 999)] = 20,
        empty: Share = 0.1,
    ) -> None:
        from diffusers import UNet2DConditionModel

        count = len(channels)
        require(len(layers) == count, "layers", layers, f"a list of {count}, one for each of task.channels")
        side, unit = data.size // pixels.SCALE, 2 ** (count - 1)
        require(crop <= side and crop % unit == 0, "crop", crop, f"a multiple of {unit}, at most {side}")
        components.install("text_encoder", "tokenizer")
        self.data = Data(data, LargeScenes)
        self.encoders = Encoders(components)
        self.scheduler, self.low_res_scheduler = pixels.residual_scheduler(), pixels.augmentation_scheduler()
        self.crop, self.crops = crop or side, crops
        self.decoded, self.augment, self.empty = decoded, augment, empty
        self.model: Any = build_network(
            lambda: UNet2DConditionModel(
                sample_size=data.size // pixels.SCALE,
                in_channels=pixels.IN_CHANNELS,
                out_channels=pixels.FOLDED,
                down_block_types=["DownBlock2D"] * count,
                up_block_types=["UpBlock2D"] * count,
                block_out_channels=channels,
                layers_per_block=layers,
                norm_num_groups=16,
                cross_attention_dim=self.encoders.width,
                # In Stable Diffusion 1's configuration this key is the number of heads.
                attention_head_dim=[max(1, c // head) for c in channels],
                class_embed_type="timestep",
            )
        )
        # A new network predicts a residual of zero: it begins as bicubic interpolation.
        torch.nn.init.zeros_(self.model.conv_out.weight)
        torch.nn.init.zeros_(self.model.conv_out.bias)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = batch["image"].device
        self.encoders.to(device)
        low = self._low(batch["image"], batch.get("small"), generator)
        image, low = random_crops(batch["image"], low, self.crop, self.crops, generator)
        captions = [caption for caption in batch["caption"] for _ in range(self.crops)]
        n = len(image)
        level = (torch.rand(n, generator=generator) ** 3 * (self.augment + 1)).long().to(device)
        noised = self.low_res_scheduler.add_noise(low, noise_like(low, generator), level)
        low = torch.where(level[:, None, None, None] > 0, noised, low)
        base = pixels.bicubic(low)
        wanted = pixels.fold(image - base) / pixels.RESIDUAL
        drop = torch.rand(n, generator=generator) < self.empty
        texts = ["" if d else c for d, c in zip(drop.tolist(), captions, strict=True)]
        t = (torch.rand(n, generator=generator) * 3 * self.scheduler.config.num_train_timesteps).long()
        t = t.clamp(max=self.scheduler.config.num_train_timesteps - 1).to(device)
        noisy = self.scheduler.add_noise(wanted / pixels.NOISE, noise_like(wanted, generator), t)
        with sdpa_kernel(SDPBackend.MATH):  # there are 256 positions: the flash kernel is slower in bf16
            given = pixels.network_input(noisy, low, self.scheduler.alphas_cumprod.to(device)[t])
            out = model(given, t, self.encoders.embed(texts, device), class_labels=level).sample
        error = F.mse_loss(out.float(), wanted)
        figures = {
            "psnr": decibels(error * pixels.RESIDUAL**2),
            "bicubic": decibels((image - base).square().mean()),
        }
        return error, {"loss": error.item(), **figures}

    @torch.no_grad()
    def _low(self, image: Tensor, small: Tensor | None, generator: torch.Generator) -> Tensor:
        """The low-resolution images, of several kinds; see :class:`UpscalerTask`."""
        low = F.avg_pool2d(image, pixels.SCALE)
        pick = torch.rand(2, len(image), generator=generator).to(image.device)
        if small is not None:
            low = torch.where((pick[0] < _DRAWN_SMALL)[:, None, None, None], small, low)
        if len(chosen := torch.nonzero(pick[1] < self.decoded)[:, 0]):
            vae = self.encoders.vae
            decoded = vae.decode(vae.encode(low[chosen]).latent_dist.mean).sample
            low = low.index_copy(0, chosen, decoded.float().clamp(-1, 1))
        return low

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        from ctxedit.training.checks.upscaler import CHECK

        return (CHECK,)

    @torch.no_grad()
    def export(self, model: Any, folder: Path) -> None:
        """Save in fp16 with both schedulers."""
        save_fp16(model, folder)
        self.scheduler.save_pretrained(folder / "scheduler")
        self.low_res_scheduler.save_pretrained(folder / "low_res_scheduler")
