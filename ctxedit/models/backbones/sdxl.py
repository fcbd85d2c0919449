"""Stable Diffusion XL: two text encoders, a pooled embedding, and size conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctxedit.errors import WeightsError
from ctxedit.models.backbones.stable_diffusion import StableDiffusion
from ctxedit.models.conditioning import Condition
from ctxedit.models.families import register
from ctxedit.models.sizes import read_config, read_json
from ctxedit.models.weights import Checkpoint


@register("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline")
class StableDiffusionXL(StableDiffusion):
    """SDXL base (Podell et al. 2023). The refiner, another pipeline class, is not a backbone for editing."""

    added_embedding: ClassVar[str | None] = "text_time"
    networks_in: ClassVar[tuple[str, ...]] = ("vae", "unet", "text_encoder", "text_encoder_2")
    others_in: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "scheduler")
    lora_loader: ClassVar[str | None] = "StableDiffusionXLLoraLoaderMixin"

    def __init__(
        self,
        checkpoint: Checkpoint,
        loaded: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
    ) -> None:
        super().__init__(checkpoint, loaded, device, dtype, offload)
        self.text_encoder_2, self.tokenizer_2 = loaded["text_encoder_2"], loaded["tokenizer_2"]
        index = read_json(checkpoint.settings / "model_index.json")
        self._zeros_for_empty = bool(index.get("force_zeros_for_empty_prompt", True))
        if dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # its activations overflow in float16

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        super().check(checkpoint)
        unet = read_config(checkpoint.settings / "unet")
        pooled = read_config(checkpoint.settings / "text_encoder_2").get("projection_dim", 0)
        rest, each = unet.get("projection_class_embeddings_input_dim"), unet.get("addition_time_embed_dim")
        if not rest or not each or rest - pooled != 6 * each:
            raise WeightsError(
                f"{checkpoint.name}: the UNet does not take the six size embeddings of the SDXL base model",
                "the refiner cannot edit alone: use the base model, --model sdxl",
            )

    @torch.no_grad()
    def condition(self, texts: Sequence[str]) -> Condition:
        """The last but one hidden states of both encoders side by side, and the second's projected vector.

        The empty text is zeros where the checkpoint says so, as the base model does.
        """
        with self._visiting(self.text_encoder):
            first = self.text_encoder(self._ids(self.tokenizer, texts), output_hidden_states=True)
        with self._visiting(self.text_encoder_2):
            second = self.text_encoder_2(self._ids(self.tokenizer_2, texts), output_hidden_states=True)
        tokens = self._joined(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1))
        pooled = second.text_embeds[:: self.chunks]  # a long prompt's first chunk
        if self._zeros_for_empty:
            keep = torch.tensor([bool(text) for text in texts], device=tokens.device).to(tokens.dtype)
            tokens, pooled = tokens * keep[:, None, None], pooled * keep[:, None]
        return Condition(tokens, pooled)

    def _added(self, rows: Condition, x: Tensor) -> dict[str, Tensor] | None:
        """The pooled vectors, and the size of the frames: for both original and target, nothing cropped."""
        height, width = (side * self.factor for side in x.shape[-2:])
        ids = torch.tensor([[height, width, 0, 0, height, width]], device=x.device, dtype=self.dtype)
        assert rows.pooled is not None  # `condition` made it
        return {"text_embeds": rows.pooled, "time_ids": ids.expand(len(x), -1)}
