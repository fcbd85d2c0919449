"""CLIP: ``CLIPModel``, contrastive, with captions that are wrong in one word among the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ctxedit.bundled.training import tokenizer
from ctxedit.bundled.training.data import Data, DataConfig, Scenes
from ctxedit.bundled.training.tokenizer import LENGTH, lengthen
from ctxedit.bundled.world import composition_captions
from ctxedit.errors import ConfigError

_TABLE = "text_model.embeddings.token_embedding.weight"


class ClipTask:
    """Images against the batch's captions and, where there are, their one-word-wrong twins (hard negatives).

    The tokenizer is learned from the data's captions, or from the drawn world's. With compositions among the
    data it learns their words too, after all others.

    Args:
        width, layers, heads, patch: of both sides.
        data: pictures and captions.
        onto: folder of a CLIP of these sizes to go on from, with its tokenizer; its words keep their tokens.

    Raises:
        ConfigError: ``onto`` is of other sizes.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        patch: int,
        data: DataConfig | None = None,
        onto: Path | None = None,
    ) -> None:
        self.data = Data(data or DataConfig(), partial(Scenes, wrong=True))
        learned = tokenizer.learn(self.data.captions) if onto is None else CLIPTokenizer.from_pretrained(onto)
        words = composition_captions.words() if self.data.config.compositions else []
        self.tokenizer, new = tokenizer.extend(learned, words)
        self.size, self.patch = self.data.config.size, patch
        sizes = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": 128,
        }
        text = CLIPTextConfig(
            vocab_size=len(self.tokenizer),
            max_position_embeddings=LENGTH,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            **sizes,
        )
        vision = CLIPVisionConfig(image_size=self.size, patch_size=patch, **sizes)
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
        self.model: nn.Module = CLIPModel(config)
        self.warm = onto is not None
        if onto is not None:
            _go_on(self.model, onto, new)

    def dataset(self, seed: int) -> Dataset[Any]:
        return self.data.dataset(seed)

    def loss(
        self, model: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        twins = batch.get("wrong", [])
        texts = [*batch["caption"], *twins]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(
            batch["image"].device
        )
        out = model(pixel_values=batch["image"], **tokens)
        # The model's own temperature grows without bound on an exact world: cap it as CLIP does.
        logits = out.logits_per_image / model.logit_scale.exp() * model.logit_scale.exp().clamp(max=100)
        n = len(batch["caption"])
        right = torch.arange(n, device=logits.device)
        # Another image's caption may by chance say the same: it is no negative then.
        numbers = {text: i for i, text in enumerate(texts)}
        ids = torch.tensor([numbers[text] for text in texts], device=logits.device)
        same = ids[:n, None] == ids[None]
        same[right, right] = False
        to_text = F.cross_entropy(logits.masked_fill(same, -1e4), right)
        to_image = F.cross_entropy(logits[:, :n].masked_fill(same[:, :n], -1e4).T, right)
        loss = to_text + 0.5 * to_image
        row = {"found": (logits.argmax(1) == right).float().mean().item()}
        if len(twins):
            ahead = logits[right, right] - logits[right, right + n]
            loss = loss + F.softplus(-ahead).mean()
            row["one_word"] = (ahead > 0).float().mean().item()
        return loss, {"loss": loss.item(), **row}

    def export(self, model: nn.Module, folder: Path) -> None:
        half = CLIPModel(model.config)
        half.load_state_dict(model.state_dict())
        half.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_preprocessor(folder, self.size, "CLIPImageProcessor")


def _go_on(model: nn.Module, folder: Path, new: Mapping[int, list[int]]) -> None:
    """Put trained weights into a fresh model whose vocabulary may be longer."""
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    tensors[_TABLE] = lengthen(tensors[_TABLE], new)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{folder} does not fit the recipe", "its sizes are others") from error


def write_preprocessor(folder: Path, size: int, kind: str) -> None:
    """The image side's preprocessor_config.json: resize, centre crop, [−1, 1]."""
    import json

    blob = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": size} if kind.startswith("CLIP") else {"height": size, "width": size},
        "resample": 3,
        "do_center_crop": kind.startswith("CLIP"),
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(blob, indent=2) + "\n")
