"""Textual inversion (Gal et al. 2022): learned vectors, written as a token in a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ctxedit.errors import WeightsError
from ctxedit.models.addons import locate_file
from ctxedit.models.sizes import header, read_json
from ctxedit.models.weights import Checkpoint

#: What diffusers calls the file of an embedding in a folder or repository.
NAMES = ("learned_embeds.safetensors",)
#: Names of the vectors of each text encoder in files for Stable Diffusion XL.
_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
#: The same in files of diffusers' pivotal tuning.
_PIVOTAL = {"text_encoders_0": "text_encoder", "text_encoders_1": "text_encoder_2"}


@dataclass(frozen=True)
class Embedding:
    """A learned token.

    Attributes:
        file: its path.
        token: what is written in a prompt.
        vectors: (n, D) for each text encoder, by its folder's name.
    """

    file: Path
    token: str
    vectors: dict[str, Tensor]

    @property
    def length(self) -> int:
        """How many of a prompt's places it takes."""
        return len(next(iter(self.vectors.values())))

    def lengthen(self, text: str) -> str:
        """A text of as many tokens as ``text`` has once the token is known."""
        return text.replace(self.token, " ".join(["a"] * self.length))


def read_embedding(name: str, checkpoint: Checkpoint, offline: bool = False) -> Embedding:
    """An embedding, checked to fit the checkpoint's text encoders.

    The token is the one that diffusers saved with the vectors; files of AUTOMATIC1111's web UI and those for
    Stable Diffusion XL have none in them, and are called by the file's name.

    Args:
        name: a file, a folder with one, a hub id, or a file of a repository (``owner/name/file``).
        checkpoint: whose prompts it is for.
        offline: do not contact the hub.

    Raises:
        WeightsError: nothing there, a pickle, no embedding, or one for another text encoder.
    """
    file = locate_file(name, "embedding", NAMES, offline)
    tensors = load_file(file) if header([file]) else {}
    token, vectors = _read(file, tensors)
    both = (checkpoint.settings / "text_encoder_2" / "config.json").is_file()
    if both and "text_encoder_2" not in vectors:
        raise WeightsError(
            f"the embedding {file.name} does not fit {checkpoint.name}: it has vectors for one "
            "of its two text encoders",
            "take an embedding that was trained with Stable Diffusion XL, or another --model",
        )
    for part, found in vectors.items():
        if not bool(torch.isfinite(found).all()):
            raise WeightsError(f"{file}: NaN or infinity in it", "the embedding is broken; fetch it again")
        config = checkpoint.settings / part / "config.json"
        width = read_json(config).get("hidden_size") if config.is_file() else None
        if found.shape[1] != width:
            raise _misfit(file, checkpoint.name, part, found, width)
    return Embedding(file, token, vectors)


def _read(file: Path, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The token, and the vectors by text encoder."""
    rows = {
        key: (v[None] if v.ndim == 1 else v).float() for key, v in tensors.items() if v.is_floating_point()
    }
    encoders = next((known for known in (_ENCODERS, _PIVOTAL) if set(rows) == set(known)), None)
    if encoders is not None:
        token, vectors = file.stem, {encoders[key]: v for key, v in rows.items()}
    elif set(rows) == {"emb_params"}:
        token, vectors = file.stem, {"text_encoder": rows["emb_params"]}
    else:
        token, vectors = next(iter(rows), ""), dict(zip(["text_encoder"], rows.values(), strict=False))
    fine = vectors and all(v.ndim == 2 and 1 <= len(v) <= 75 for v in vectors.values())
    same = len({len(v) for v in vectors.values()}) == 1
    if len(vectors) != len(tensors) or not fine or not same or not token.strip():
        raise WeightsError(
            f"{file} is not a textual inversion embedding",
            "it holds the vectors of one token, as diffusers or AUTOMATIC1111's web UI save them",
        )
    return token, vectors


def _misfit(file: Path, name: str, part: str, found: Tensor, width: int | None) -> WeightsError:
    said = "it has none" if width is None else f"the model's have {width}"
    return WeightsError(
        f"the embedding {file.name} does not fit {name}: vectors of {found.shape[1]} for {part}, {said}",
        "take an embedding that was trained with this kind of model, or another --model",
    )


def add_embedding(embedding: Embedding, name: str, tokenizer: Any, encoder: Any, part: str) -> list[int]:
    """Teach a tokenizer the token and its text encoder the vectors; the ids of the token.

    Raises:
        WeightsError: the token is a word of the tokenizer already, or the vectors do not fit.
    """
    from tokenizers import AddedToken

    vectors = embedding.vectors[part]
    table = encoder.get_input_embeddings().weight
    if vectors.shape[1] != table.shape[1]:
        raise _misfit(embedding.file, name, part, vectors, table.shape[1])
    names = [embedding.token, *(f"{embedding.token}_{i}" for i in range(1, len(vectors)))]
    if tokenizer.add_tokens([AddedToken(n, single_word=True, normalized=False) for n in names]) < len(names):
        raise WeightsError(
            f"{embedding.token!r}, the token of {embedding.file.name}, is already a token of {name}",
            "give each embedding once; rename the file if its token comes from the file name",
        )
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids: list[int] = tokenizer.convert_tokens_to_ids(names)
    table = encoder.get_input_embeddings().weight.requires_grad_(False)
    table.data[ids] = vectors.to(table)
    modules: list[Any] = [encoder, getattr(encoder, "text_model", None)]
    for module in modules:
        if hasattr(module, "eos_token_id"):
            # Old configs find the end of a prompt as the largest id, which the new token's would be.
            module.eos_token_id = tokenizer.eos_token_id
    return ids
