"""The components that a model is trained on: those in the folder of models, else the built-in ones."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxedit.errors import WeightsError
from ctxedit.media.temporary import atomic
from ctxedit.model_names import VOCABULARY
from ctxedit.models.weights import BUILTIN_FOLDER

if TYPE_CHECKING:
    from torch import Tensor

#: What a pipeline's folder holds besides its components' weights.
PIPELINE_FILES = ("scheduler", "model_index.json", VOCABULARY)
_AGAIN = "train it again, or delete the folder to use the built-in one"


def find_component(models: Path, name: str) -> Path:
    """The folder of a component, e.g. ``vae``; raises WeightsError if it is not built in either."""
    if any((models / name).glob("*.json")) or any((models / name).glob("*.safetensors")):
        return models / name
    if name in ("text_encoder", "tokenizer") and (models / "clip" / "model.safetensors").is_file():
        return models / "clip"  # CLIP's text tower
    if not (BUILTIN_FOLDER / name).is_dir():
        raise WeightsError(f"{models} has no {name}, and none is built in", "train it first")
    return BUILTIN_FOLDER / name


def load_network(cls: Any, folder: Path, **options: Any) -> Any:
    """A component's network, from safetensors only.

    Args:
        cls: diffusers' or transformers' class.
        folder: from :func:`find_component`.
        options: further ones of its ``from_pretrained``.

    Raises:
        WeightsError: as :func:`load_tokenizer`, or a weight is missing.
    """
    network, report = _load(cls, folder, use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(f"{folder.resolve()} lacks {len(missing)} weights, including {missing[0]}", _AGAIN)
    return network


def load_tokenizer(folder: Path) -> Any:
    """A component's CLIP tokenizer; raises WeightsError for missing or damaged files, or another kind."""
    from transformers import CLIPTokenizer

    return _load(CLIPTokenizer, folder)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in float32; raises WeightsError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} cannot be loaded: {error}", _AGAIN) from error


def _load(cls: Any, folder: Path, **options: Any) -> Any:
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except MemoryError:
        raise
    except Exception as error:  # any error of diffusers, transformers and safetensors
        line = " ".join(str(error).split())[:160]
        # A dry run sees links to the components.
        raise WeightsError(f"{folder.resolve()} cannot be loaded: {line}", _AGAIN) from error


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file in a folder, by name."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.safetensors"))}


@dataclass(frozen=True)
class Components:
    """The components available to one training.

    Attributes:
        models: folder of models in diffusers' layout, into which the weights are exported.
        initial: the weights that a task which continues another's starts from; they replace the component of
            that name in ``models``.
        initial_name: that component.
    """

    models: Path
    initial: Path | None = None
    initial_name: str = ""

    def find(self, name: str) -> Path:
        """As :func:`find_component`."""
        if self.initial is not None and name == self.initial_name:
            return self.initial
        return find_component(self.models, name)

    def install(self, *names: str) -> None:
        """Copy components that ``models`` lacks into it, so that the folder can be loaded as a pipeline.

        A denoiser comes with its noise schedule, the pipeline's index and the words that it knows. The text
        encoder and its tokenizer are taken from CLIP. They are copies: the denoiser needs them unchanged when
        CLIP is trained further.
        """
        for name in names:
            origin, place = self.find(name), self.models / name
            if origin == place:
                continue
            with atomic(place, True) as temporary:
                if origin.name == "clip":
                    _extract_text_tower(origin, name, temporary)
                else:
                    shutil.copytree(origin, temporary)
            if name == "unet":
                copy_missing(PIPELINE_FILES, (origin.parent,), self.models)


def copy_missing(names: Iterable[str], origins: Sequence[Path], folder: Path) -> None:
    """Copy files and folders that ``folder`` lacks, each from the first of the origins that has it."""
    for name in names:
        source = next((place / name for place in origins if (place / name).exists()), None)
        if source is None or (folder / name).exists():
            continue
        with atomic(folder / name, True) as temporary:
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, temporary)


def _extract_text_tower(clip: Path, name: str, folder: Path) -> None:
    import torch
    from transformers import CLIPTextModel

    if name == "tokenizer":
        load_tokenizer(clip).save_pretrained(folder)
    else:
        load_network(CLIPTextModel, clip, dtype=torch.float16).save_pretrained(folder)


def link_components(models: Path, folder: Path) -> Path:
    """Fill ``folder`` with links to the components in ``models``, so that writing there does not modify
    them."""
    for place in models.iterdir() if models.is_dir() else ():
        if place.is_dir() and not place.name.startswith("."):
            (folder / place.name).symlink_to(place.resolve())
    return folder
