"""The captioner: ``Blip2ForConditionalGeneration`` (vision transformer, Q-Former, OPT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPTokenizer,
    OPTConfig,
)

from ctxedit.synthetic import scenes
from ctxedit.training.data import Data, DataConfig, to_tensor
from ctxedit.training.tasks.clip import write_preprocessor
from ctxedit.training.tokenizer import LENGTH

_IMAGE = "<image>"
_QUERIES = 8


class Captions(Dataset[dict[str, Any]]):
    """Frames with the canonical caption: one picture, one sentence."""

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size = seed, size

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        scene = scenes.draw_scene(rng)
        frame, _ = scenes.render_frame(scene, float(rng.random()), self.size)
        return {"image": to_tensor(frame), "caption": scenes.caption(scene)}


class CaptionerTask:
    """Next-word prediction behind the query tokens."""

    def __init__(
        self, tokenizer: Path, width: int, layers: int, patch: int = 8, data: DataConfig | None = None
    ) -> None:
        self.data = Data(data or DataConfig(), Captions)
        self.size = self.data.config.size
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE]})
        self.image_token = self.tokenizer.convert_tokens_to_ids(_IMAGE)
        sizes = {"hidden_size": width, "num_attention_heads": 4, "num_hidden_layers": layers}
        text = OPTConfig(
            vocab_size=len(self.tokenizer),
            ffn_dim=4 * width,
            word_embed_proj_dim=width,
            max_position_embeddings=64,
            dropout=0.0,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            **sizes,
        )
        vision = Blip2VisionConfig(
            image_size=self.size,
            patch_size=patch,
            intermediate_size=4 * width,
            attention_dropout=0.0,
            **sizes,
        )
        queries = Blip2QFormerConfig(
            vocab_size=len(self.tokenizer),
            intermediate_size=4 * width,
            encoder_hidden_size=width,
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=64,
            **sizes,
        )
        config = Blip2Config(
            vision_config=vision.to_dict(),
            qformer_config=queries.to_dict(),
            text_config=text.to_dict(),
            num_query_tokens=_QUERIES,
            image_token_index=self.image_token,
        )
        self.model: nn.Module = Blip2ForConditionalGeneration(config)
        # The library zeroes the queries: all eight would stay one.
        nn.init.normal_(self.model.query_tokens, std=0.02)

    def dataset(self, seed: int) -> Dataset[Any]:
        return self.data.dataset(seed)

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        device = batch["image"].device
        tokens = self.tokenizer(
            batch["caption"], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(device)
        head = torch.full((len(batch["caption"]), _QUERIES), self.image_token, device=device)
        ids = torch.cat([head, tokens.input_ids], 1)
        seen = torch.cat([torch.ones_like(head), tokens.attention_mask], 1)
        words = ids.masked_fill(seen == 0, -100)
        words[:, : _QUERIES + 1] = -100
        out = model(pixel_values=batch["image"], input_ids=ids, attention_mask=seen, labels=words)
        # OPT predicts the next token: compare position i with the word at i + 1.
        right = (out.logits.argmax(-1)[:, :-1] == words[:, 1:]) | (words[:, 1:] == -100)
        return out.loss, {"loss": out.loss.item(), "exact": right.all(1).float().mean().item()}

    def export(self, model: nn.Module, folder: Path) -> None:
        half = Blip2ForConditionalGeneration(model.config)
        half.load_state_dict(model.state_dict())
        half.generation_config.max_new_tokens = 24
        half.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_preprocessor(folder, self.size, "BlipImageProcessor")
