"""The captioner: ``Blip2ForConditionalGeneration`` (vision transformer, Q-Former, OPT)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ctxedit.errors import ConfigError
from ctxedit.synthetic import scenes
from ctxedit.synthetic.composition_captions import word
from ctxedit.synthetic.tensors import to_tensor
from ctxedit.training import composition_samples, tokenizer
from ctxedit.training.components import Components, load_tokenizer
from ctxedit.training.data import Data, DataConfig
from ctxedit.training.memory import build_network
from ctxedit.training.settings import Channels, Count, require
from ctxedit.training.tasks.base import Task, load_tensors, read_tensors, register
from ctxedit.training.tasks.clip import write_preprocessor
from ctxedit.training.tokenizer import LENGTH

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check

_IMAGE = "<image>"
#: Tensors with a row for each token, the input's and, where it is not tied to it, the output's.
_TABLES = ("embed_tokens.weight", "lm_head.weight")
_QUERIES = 8
_HEADS = 4


class Captions(Dataset[dict[str, Any]]):
    """Frames of drawn scenes, a share of them compositions, with the scene's canonical caption."""

    def __init__(self, seed: int, size: int, *, compositions: float = 0.0) -> None:
        self.seed, self.size, self.compositions = seed, size, compositions

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        composed = composition_samples.draw(self.seed, index, self.compositions)
        if composed is not None:
            drawn, rng = composed
            frame, _ = scenes.render_frame(drawn.scene, float(rng.random()), self.size)
            # Of the equivalent captions always the same one, since the image does not tell them apart.
            caption = word(drawn.composition.normalized, drawn.scene.background, drawn.scene.style)
            return {"image": to_tensor(frame), "caption": caption}
        rng = np.random.default_rng((self.seed, index))
        scene = scenes.draw_scene(rng)
        frame, _ = scenes.render_frame(scene, float(rng.random()), self.size)
        return {"image": to_tensor(frame), "caption": scenes.caption(scene)}


@register("captioner")
class CaptionerTask(Task):
    """Prediction of the next caption token, after the query tokens.

    Args:
        components: with ``clip``, whose tokenizer is used.
        data: images and captions.
        width, layers: of vision transformer, Q-Former and language model; ``width`` a multiple of 4, the
            number of attention heads.
        patch: side of an image patch in pixels.
    """

    folder = "captioner"
    requires = ("clip",)

    def __init__(
        self, components: Components, data: DataConfig, *, width: Channels, layers: Count, patch: Channels = 8
    ) -> None:
        from transformers import (
            Blip2Config,
            Blip2ForConditionalGeneration,
            Blip2QFormerConfig,
            Blip2VisionConfig,
            OPTConfig,
        )

        require(width % _HEADS == 0, "width", width, f"a multiple of {_HEADS}")
        require(patch <= data.size, "patch", patch, f"at most data.size, {data.size}")
        self.data = Data(data, Captions)
        self.size = data.size
        self.tokenizer = load_tokenizer(components.find("clip"))
        self.tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE]})
        self.image_token = self.tokenizer.convert_tokens_to_ids(_IMAGE)
        sizes = {"hidden_size": width, "num_attention_heads": _HEADS, "num_hidden_layers": layers}
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
        self.model: Any = build_network(lambda: Blip2ForConditionalGeneration(config))
        # Transformers initialises the query tokens to zero, from which all eight would stay equal.
        nn.init.normal_(self.model.query_tokens, std=0.02)

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = batch["image"].device
        tokens = self.tokenizer(
            batch["caption"], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(device)
        head = torch.full((len(batch["caption"]), _QUERIES), self.image_token, device=device)
        ids = torch.cat([head, tokens.input_ids], 1)
        attention = torch.cat([torch.ones_like(head), tokens.attention_mask], 1)
        labels = ids.masked_fill(attention == 0, -100)
        labels[:, : _QUERIES + 1] = -100
        out = model(pixel_values=batch["image"], input_ids=ids, attention_mask=attention, labels=labels)
        # Position i predicts the token at i + 1.
        correct = (out.logits.argmax(-1)[:, :-1] == labels[:, 1:]) | (labels[:, 1:] == -100)
        return out.loss, {"loss": out.loss.item(), "exact": correct.all(1).float().mean().item()}

    def export(self, model: Any, folder: Path) -> None:
        half = type(model)(model.config)
        half.load_state_dict(model.state_dict())
        half.generation_config.max_new_tokens = LENGTH
        half.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_preprocessor(folder, self.size, "BlipImageProcessor")

    def load_weights(self, folder: Path) -> None:
        """Initialise with an exported captioner, whose vocabulary may lack the last words of this one's."""
        known = load_tokenizer(folder)
        tensors = read_tensors(folder)
        own = self.tokenizer.get_vocab()
        new = own.keys() - known.get_vocab().keys()
        words = (token.removesuffix("</w>") for token in new if token.endswith("</w>"))
        longer, added = tokenizer.extend(known, words)
        shared = {token: at for token, at in longer.get_vocab().items() if token != _IMAGE}
        if any(own.get(token) != at for token, at in shared.items()) or len(shared) + 1 != len(own):
            raise ConfigError(f"{folder} does not fit the recipe", "train from scratch, without --warm")
        for name in [name for name in tensors if name.endswith(_TABLES)]:
            # The image token is the last one: it moves behind the added words.
            table, image = tensors[name][:-1], tensors[name][-1:]
            tensors[name] = torch.cat([tokenizer.extend_embeddings(table, added), image])
        load_tensors(self.model, tensors, folder)

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        from ctxedit.training.checks.captioner import CHECK

        return (CHECK,)
