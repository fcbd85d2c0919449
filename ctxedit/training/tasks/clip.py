"""CLIP: ``CLIPModel``, contrastive, with captions that are wrong in one attribute as hard negatives."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctxedit.errors import ConfigError
from ctxedit.synthetic import composition_captions
from ctxedit.training import tokenizer
from ctxedit.training.components import Components, load_tokenizer, read_weights
from ctxedit.training.data import Data, DataConfig, Scenes
from ctxedit.training.memory import build_network
from ctxedit.training.settings import Channels, Count, require
from ctxedit.training.tasks.base import Task, register
from ctxedit.training.tokenizer import LENGTH

if TYPE_CHECKING:
    from ctxedit.training.checks.base import Check

_TABLE = "text_model.embeddings.token_embedding.weight"


@register("clip")
class ClipTask(Task):
    """Images against the captions of the batch and, for drawn scenes, against hard negatives.

    The tokenizer is trained on the captions of the data; for drawn scenes the words of compositions are added
    to it after all others, whether or not there are compositions in the data.

    Args:
        components: none are needed.
        data: images and captions.
        width, layers, heads: of both transformers; ``width`` a multiple of ``heads``.
        patch: side of an image patch in pixels.
    """

    folder = "clip"
    provides = ("text_encoder", "tokenizer")
    whole_batch = True

    def __init__(
        self,
        components: Components,
        data: DataConfig,
        *,
        width: Channels,
        layers: Count,
        heads: Count,
        patch: Channels,
    ) -> None:
        from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

        require(width % heads == 0, "width", width, f"a multiple of task.heads, {heads}")
        require(patch <= data.size, "patch", patch, f"at most data.size, {data.size}")
        self.data = Data(data, partial(Scenes, wrong=True))
        learned = tokenizer.learn(self.data.captions)
        self.tokenizer, _ = tokenizer.extend(learned, self._words())
        self.size = data.size
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
        self.model: Any = build_network(lambda: CLIPModel(config))

    def loss(self, model: Any, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        negatives = batch.get("wrong", [])
        texts = [*batch["caption"], *negatives]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(
            batch["image"].device
        )
        out = model(pixel_values=batch["image"], **tokens)
        # On noiseless data the learned temperature grows without bound: cap it at 100 as CLIP does.
        logits = out.logits_per_image / model.logit_scale.exp() * model.logit_scale.exp().clamp(max=100)
        n = len(batch["caption"])
        right = torch.arange(n, device=logits.device)
        # Another image may have the same caption, which is then not a negative.
        numbers = {text: i for i, text in enumerate(texts)}
        ids = torch.tensor([numbers[text] for text in texts], device=logits.device)
        same = ids[:n, None] == ids[None]
        same[right, right] = False
        to_text = F.cross_entropy(logits.masked_fill(same, -1e4), right)
        to_image = F.cross_entropy(logits[:, :n].masked_fill(same[:, :n], -1e4).T, right)
        loss = to_text + 0.5 * to_image
        row = {"found": (logits.argmax(1) == right).float().mean().item()}
        if len(negatives):
            ahead = logits[right, right] - logits[right, right + n]
            loss = loss + F.softplus(-ahead).mean()
            row["one_word"] = (ahead > 0).float().mean().item()
        return loss, {"loss": loss.item(), **row}

    def export(self, model: Any, folder: Path) -> None:
        half = type(model)(model.config)
        half.load_state_dict(model.state_dict())
        half.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_preprocessor(folder, self.size, "CLIPImageProcessor")

    def _words(self) -> list[str]:
        """Words that get a token each, after all others: for drawn scenes those of compositions."""
        return composition_captions.words() if self.data.captions is None else []

    def load_weights(self, folder: Path) -> None:
        """Initialise with an exported CLIP, whose vocabulary may lack the last tokens of this one's."""
        known = load_tokenizer(folder)
        own = self.tokenizer.get_vocab()
        error = ConfigError(f"{folder} does not fit the recipe", "train from scratch, without --warm")
        if any(own.get(token) != number for token, number in known.get_vocab().items()):
            raise error
        _, added = tokenizer.extend(known, self._words())
        tensors = read_weights(folder / "model.safetensors")
        tensors[_TABLE] = tokenizer.extend_embeddings(tensors[_TABLE], added)
        try:
            self.model.load_state_dict(tensors)
        except RuntimeError as cause:
            raise error from cause

    @classmethod
    def checks(cls) -> tuple[Check, ...]:
        from ctxedit.training.checks.clip import CHECK

        return (CHECK,)


def write_preprocessor(folder: Path, size: int, kind: str) -> None:
    """Write the image processor's configuration: resize, for CLIP centre crop, normalise to [−1, 1]."""
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
