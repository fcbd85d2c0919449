"""CLIP as a judge of clips and prompts: one ``CLIPModel``, from a folder or by hub id.

Here too is what every transformers checkpoint shares: finding its folder, refusing a broken one, and
preparing images by hand. Transformers' default image processors need torchvision, which ctxedit does not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ctxedit.errors import ResourceError, WeightsError
from ctxedit.files import check_model_files, expanded, neighbour, read_json
from ctxedit.models import hub, layout
from ctxedit.models.sizes import read_config
from ctxedit.models.weights import is_half, variant_of

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
_BATCH = 16
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_AGAIN = "fetch or copy the checkpoint again"


class ClipScorer:
    """Unit-length CLIP embeddings of frames and of texts.

    Args:
        folder_or_id: a folder in transformers' format, or a hub id such as ``openai/clip-vit-base-patch32``.
        device, dtype: where and in which precision the network runs; embeddings come back in float32 on CPU.
        offline: use the hub's cache only (``HF_HUB_OFFLINE`` does the same).
        name: shown next to the figures; by default the id or the folder's name.

    Raises:
        WeightsError: nothing there, a pickle, or files missing or broken.

    Frames are resized with Pillow's bicubic filter and normalised as the checkpoint's own
    ``preprocessor_config.json`` says. CLIP's say: the shorter edge to the network's size, then the central
    square. So of a clip that is not square, CLIP sees the middle and not the ends of the longer edge.
    """

    def __init__(
        self,
        folder_or_id: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offline: bool = False,
        name: str | None = None,
    ) -> None:
        from transformers import CLIPModel

        folder = checkpoint_folder(folder_or_id, offline, is_half(dtype))
        self.name = name or checkpoint_name(folder_or_id)
        #: Tells folders of one name apart; empty where the name is enough.
        self.version = ""
        self.device, self.dtype = torch.device(device), dtype
        self._prepare = ImagePreprocessor(folder, square=False)
        self._tokenizer = load_tokenizer(folder)
        self._model = load_model(CLIPModel, folder, device, dtype)
        config = self._model.config
        self._prepare.check(config.vision_config.image_size)
        check_special_tokens(self._tokenizer, config.text_config.vocab_size, self.name)
        self.length = min(config.text_config.max_position_embeddings, self._tokenizer.model_max_length)

    @torch.no_grad()
    def embed_images(self, frames: np.ndarray, unit: bool = True) -> Tensor:
        """Frames ``(F, H, W, 3)`` uint8 RGB to ``(F, D)`` float32 on CPU, rows of length 1 if ``unit``."""
        rows = []
        for start in range(0, len(frames), _BATCH):
            pixels = self._prepare(list(frames[start : start + _BATCH])).to(self.device, self.dtype)
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            rows.append(self._model.visual_projection(pooled).float().cpu())
        if not rows:
            raise ValueError("no frames to embed")
        return normalize(torch.cat(rows), dim=-1) if unit else torch.cat(rows)

    @property
    def scale(self) -> float:
        """What cosines are multiplied by to be log-probabilities (Radford et al. 2021), up to a constant."""
        return float(self._model.logit_scale.exp())

    @property
    def image_width(self) -> int:
        """Width of :meth:`image_tokens`."""
        return int(self._model.config.vision_config.hidden_size)

    @torch.no_grad()
    def image_tokens(self, frames: np.ndarray) -> Tensor:
        """Frames ``(F, H, W, 3)`` uint8 RGB to the image encoder's tokens ``(F, M, image_width)``."""
        pixels = self._prepare(list(frames)).to(self.device, self.dtype)
        return self._model.vision_model(pixel_values=pixels).last_hidden_state

    def image_keys(self, frames: np.ndarray) -> Tensor:
        """Frames ``(F, H, W, 3)`` uint8 RGB to the last layer's keys ``(F, M, D)``, on CPU."""
        keys: list[Tensor] = []
        layer = self._model.vision_model.encoder.layers[-1].self_attn.k_proj
        hook = layer.register_forward_hook(lambda module, args, out: keys.append(out.float().cpu()))
        try:
            for start in range(0, len(frames), _BATCH):
                self.image_tokens(frames[start : start + _BATCH])
        finally:
            hook.remove()
        return torch.cat(keys)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """``N`` texts to ``(N, D)`` float32 on CPU, each row of length 1. See :meth:`cut` for long ones."""
        if not texts:
            raise ValueError("no texts to embed")
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        pooled = self._model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return normalize(self._model.text_projection(pooled).float().cpu(), dim=-1)

    def cut(self, text: str) -> str:
        """The end of ``text`` that the encoder does not see, empty when all of it fits."""
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(self._tokenizer.decode(tokens[self.length - 2 :])).strip()  # two go to start and end


class ImagePreprocessor:
    """Images to a network's pixels, as ``preprocessor_config.json`` (or ``processor_config.json``) says.

    Args:
        folder: holds the file. Keys read: ``do_resize``, ``size``, ``resample``, ``do_center_crop``,
            ``crop_size``, ``do_rescale``, ``rescale_factor``, ``do_normalize``, ``image_mean``,
            ``image_std``; any may be absent.
        square: what a ``size`` given as one number means: the square (BLIP-2), or the shorter edge (CLIP).
    """

    def __init__(self, folder: Path, square: bool) -> None:
        blob = _image_settings(folder)
        try:
            size = blob.get("size", 224)
            if isinstance(size, int):
                size = {"height": size, "width": size} if square else {"shortest_edge": size}
            self._edge = None if "height" in size else int(size["shortest_edge"])
            self._size = (int(size["height"]), int(size["width"])) if "height" in size else None
            crop = blob.get("crop_size") or self._size or (self._edge, self._edge)
            if isinstance(crop, int):
                crop = (crop, crop)
            self._crop = (int(crop["height"]), int(crop["width"])) if isinstance(crop, dict) else tuple(crop)
            self._resizes = bool(blob.get("do_resize", True))
            self._crops = bool(blob.get("do_center_crop", not square))
            self._filter = Image.Resampling(blob.get("resample", Image.Resampling.BICUBIC))
            self._scale = float(blob.get("rescale_factor", 1 / 255)) if blob.get("do_rescale", True) else 1.0
            normalise = blob.get("do_normalize", True)
            self._mean = np.array(blob.get("image_mean", _MEAN) if normalise else (0, 0, 0), np.float32)
            self._std = np.array(blob.get("image_std", _STD) if normalise else (1, 1, 1), np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{folder}: broken image settings ({_first_line(error)})", _AGAIN) from error

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """``N`` images ``(H, W, 3)`` uint8 RGB of one size to ``(N, 3, h, w)`` float32."""
        return torch.from_numpy(np.stack([self._one(image) for image in images]))

    def check(self, image_size: int | Sequence[int]) -> None:
        """Refuse settings that would not give the network the size it was made for."""
        due = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        given = self._crop if self._crops else self._size
        if self._resizes and given != due:
            raise WeightsError(
                f"the image settings give {given} pixels, the network takes {due}",
                "make size and crop_size in preprocessor_config.json agree with config.json",
            )

    def _one(self, image: np.ndarray) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"want uint8 (H, W, 3), got {image.dtype} {image.shape}")
        if self._resizes:
            height, width = self._size or _shorter_edge_to(self._edge or 0, *image.shape[:2])
            image = np.asarray(Image.fromarray(image).resize((width, height), self._filter))
        if self._crops:
            image = _center_crop(image, *self._crop)
        return np.moveaxis((image.astype(np.float32) * self._scale - self._mean) / self._std, -1, 0)


def checkpoint_name(folder_or_id: str | Path) -> str:
    """A folder's last name, or the hub id as it is."""
    path = expanded(folder_or_id)
    return path.resolve().name if os.path.isdir(path) else str(folder_or_id)


def checkpoint_folder(folder_or_id: str | Path, offline: bool = False, half: bool = False) -> Path:
    """The folder of a transformers checkpoint with safetensors weights; a hub id is fetched into the cache.

    Args:
        folder_or_id: which.
        offline: look into the hub's cache only.
        half: the network will run in half precision: its fp16 files are fetched where there are some.

    Raises:
        WeightsError: no such folder or id, not in the cache and offline, or weights that are not safetensors.
        OutputError: the disk is full.
    """
    path = expanded(folder_or_id)
    if not os.path.isdir(path):
        if isinstance(folder_or_id, Path) or os.path.exists(path) or not _HUB_ID.fullmatch(folder_or_id):
            raise WeightsError(
                f"{folder_or_id} is not a folder",
                f"{neighbour(path)}give a folder in transformers' format, or a hub id",
            )
        path = _fetch(folder_or_id, offline, half)
    if not (path / "config.json").is_file():
        raise WeightsError(f"{folder_or_id} has no config.json", "give a folder in transformers' format")
    check_model_files(path)
    names = [file.name for file in path.iterdir()]
    layout.require(names, str(folder_or_id))
    return path


def load_tokenizer(folder: Path, cls: Any = None) -> Any:
    """The checkpoint's own tokenizer, whatever its class, unless that is known."""
    from transformers import AutoTokenizer

    try:
        if not any((folder / file).is_file() for file in _VOCABULARIES):
            raise FileNotFoundError("no vocabulary")  # transformers would make an empty one
        return (cls or AutoTokenizer).from_pretrained(folder, local_files_only=True)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise WeightsError(
            f"{folder}: the tokenizer cannot be read ({_first_line(error)})",
            "the folder needs tokenizer.json and tokenizer_config.json (save_pretrained writes them)",
        ) from error


def check_special_tokens(tokenizer: Any, count: int, name: str) -> None:
    """Raise WeightsError if a special token (padding, start, end) is not among the network's tokens."""
    special = {"pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    for kind, number in special.items():
        if number is not None and number >= count:
            raise WeightsError(
                f"{name}: the tokenizer's {kind}_token is not in the text encoder's vocabulary",
                "its tokenizer_config.json is damaged or belongs to another model",
            )


def load_model(cls: Any, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A network from safetensors, frozen and in eval mode; nothing missing in it and every weight finite."""
    read_config(folder)
    try:
        model, report = cls.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True,
            variant=variant_of(folder, dtype),
        )  # fmt: skip
        model = model.to(device).eval().requires_grad_(False)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"not enough memory for {folder}", "take a smaller model") from error
    except Exception as error:
        raise WeightsError(f"{folder} cannot be loaded ({_first_line(error)})", _AGAIN) from error
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(f"{folder} lacks {len(missing)} weights, including {missing[0]}", _AGAIN)
    for key, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise WeightsError(f"{folder}: NaN or infinity in {key}", _AGAIN)
    return model


def _fetch(hub_id: str, offline: bool, half: bool) -> Path:
    select = layout.flat(hub_id)
    if (found := hub.cached(hub_id, select, half)) is not None:
        return found
    if hub.is_offline(offline):
        raise hub.offline_error(hub_id)
    there = hub.listing(hub_id)
    return hub.fetch(there, select(there.names, half))


def _image_settings(folder: Path) -> dict[str, Any]:
    """Transformers keeps them in a file of their own, or inside the processor's."""
    for file, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if not (folder / file).is_file():
            continue
        try:
            blob = read_json(folder / file, "JSON object", error=WeightsError)
            found = blob if key is None else blob.get(key)
        except AttributeError as error:
            raise WeightsError(f"{folder / file} is not a JSON object", _AGAIN) from error
        if isinstance(found, dict):
            return found
    raise WeightsError(f"{folder} has no preprocessor_config.json", _AGAIN)


def _shorter_edge_to(edge: int, height: int, width: int) -> tuple[int, int]:
    if height <= width:
        return edge, int(edge * width / height)
    return int(edge * height / width), edge


def _center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    if top < 0 or left < 0:
        raise ValueError(f"an image of {image.shape[:2]} cannot be cropped to {(height, width)}")
    return image[top : top + height, left : left + width]


def is_panic(error: BaseException) -> bool:
    """Whether a Rust library (tokenizers, safetensors) panicked; PyO3's panic is not an ``Exception``."""
    return type(error).__name__ == "PanicException"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
