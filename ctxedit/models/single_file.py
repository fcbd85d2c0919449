"""A checkpoint that is one file of weights, as on model sites: its configuration, and its tensors.

diffusers would fetch a configuration for it, even when told to use local files only. Here it is derived from
the file, so that nothing is fetched. The tokenizer, CLIP's for all of them, is built from its merges, which
no such file has and which are not ours to ship: :func:`_merges` finds them on this machine.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ctxedit.errors import WeightsError
from ctxedit.files import process_folder
from ctxedit.model_names import SHORT_NAMES
from ctxedit.models import hub, original
from ctxedit.models.original import Original, Prediction
from ctxedit.models.sizes import Weight, header, tensor_weight

#: Repositories whose files hold the merges of CLIP's tokenizer, all of them the same.
_WITH_MERGES = ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14", *SHORT_NAMES.values())
_NAMES = ("merges.txt", "tokenizer.json")
#: Python packages whose wheels hold them.
_PACKAGES, _PACKED = ("open_clip", "clip"), "bpe_simple_vocab_16e6.txt.gz"
#: The vocabulary has 49,408 tokens: 256 signs, twice; a token for each merge; start and end.
_MERGE_COUNT = 49408 - 2 * 256 - 2
#: Where trainers that save the whole state put the weights.
_NESTED = "state_dict."
_YAML_LIMIT = 1 << 20


@dataclass(frozen=True)
class SingleFile:
    """One file of weights, its header read.

    Attributes:
        original: its configuration.
        weights: parameters and bytes of each network.
        folder: of its configuration, as diffusers lays one out, without weights.
        note: what was assumed and cannot be known; None for nothing.
    """

    path: Path
    original: Original
    weights: dict[str, Weight]
    folder: Path
    note: str | None = None


def open_single_file(path: Path) -> SingleFile:
    """Read a file's header; the same file is read once.

    Raises:
        WeightsError: it cannot be read, or is not a complete Stable Diffusion 1.x, 2.x or XL base.
    """
    path = path.resolve()
    return _open(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _open(path: Path, changed: int) -> SingleFile:
    entries = {_plain(name): entry for name, entry in header([path]).items()}
    shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
    prediction, zero_snr, note = _prediction(path, shapes)
    found = original.describe(shapes, str(path), prediction, zero_snr)
    weights = {
        part: sum((tensor_weight(e) for key, e in entries.items() if key.startswith(prefix)), Weight())
        for part, prefix in found.prefixes.items()
    }
    return SingleFile(path, found, weights, _write(found), note)


def load_tensors(file: SingleFile, part: str) -> dict[str, Tensor]:
    """The tensors of one network, under their original names; those of another one are not read."""
    prefix = file.original.prefixes[part]
    try:
        with safe_open(str(file.path), "pt") as stored:
            names = {_plain(name): name for name in stored.keys()}  # noqa: SIM118 - it is no mapping
            found = {key: stored.get_tensor(name) for key, name in names.items() if key.startswith(prefix)}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file.path} cannot be read: {error}", "fetch it again") from error
    if prefix == original.OPEN_CLIP:
        unused = f"{prefix}transformer.resblocks.{original.OPEN_CLIP_LAYERS}."
        found = {key: value for key, value in found.items() if not key.startswith(unused)}
    return found


def load_networks(file: SingleFile, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """The networks by folder, on the CPU, converted by diffusers; each in its precision.

    Raises:
        WeightsError: weights are missing.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    loaded: dict[str, Any] = {}
    for part, dtype in dtypes.items():
        tensors = load_tensors(file, part)
        options = {"config": str(file.folder), "subfolder": part, "local_files_only": True}
        try:
            if part in classes:
                loaded[part] = create_diffusers_clip_model_from_ldm(
                    classes[part], tensors, torch_dtype=dtype, **options
                )
            else:
                cls = UNet2DConditionModel if part == "unet" else AutoencoderKL
                loaded[part] = cls.from_single_file(tensors, torch_dtype=dtype, **options)
        except NotImplementedError as error:  # torch's, for a weight that is still without values
            raise WeightsError(
                f"{file.path} lacks weights of its {part}", "fetch or save it again"
            ) from error
    return loaded


def _plain(name: str) -> str:
    """A tensor's name without nesting, and as newer files write it."""
    name = name.removeprefix(_NESTED)
    for prefix in (original.CLIP, original.XL_CLIP):
        if name.startswith((f"{prefix}embeddings.", f"{prefix}encoder.", f"{prefix}final_layer_norm.")):
            return f"{prefix}text_model.{name.removeprefix(prefix)}"
    return name


def _prediction(path: Path, shapes: original.Shapes) -> tuple[Prediction, bool, str | None]:
    """What the denoiser predicts and whether it starts at zero signal; what is assumed, if anything.

    Said by marks that trainers leave in the file (``v_pred``, ``ztsnr``), by its metadata (ModelSpec), or by
    the original configuration beside it (``FILE.yaml``).
    """
    zero_snr = "ztsnr" in shapes
    if "v_pred" in shapes:
        return "v_prediction", zero_snr, None
    with safe_open(str(path), "pt") as stored:
        said = str((stored.metadata() or {}).get("modelspec.prediction_type", "")).lower()
    beside = path.with_suffix(".yaml")
    if not said and beside.is_file() and beside.stat().st_size < _YAML_LIMIT:
        line = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", beside.read_text("utf-8", "replace"), re.M)
        said = line[1].lower() if line else "epsilon"
    if said:
        return ("v_prediction" if said.startswith("v") else "epsilon"), zero_snr, None
    if original.is_second(shapes):
        return (
            "v_prediction",
            zero_snr,
            (
                f"{path.name} does not say what it predicts: taken for a velocity, as Stable Diffusion 2.1's "
                f"at 768 px; if it is of the 512 px models, put {beside.name} with the line "
                "`parameterization: eps` beside it"
            ),
        )
    return "epsilon", zero_snr, None


def _write(found: Original) -> Path:
    """The configuration as a folder."""
    folder = process_folder()
    index: dict[str, Any] = {"_class_name": found.pipeline}
    for part, config in found.configs.items():
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, padding in found.tokenizers.items():
        _write_tokenizer(folder / part, padding)
    return folder


def _merges() -> list[str]:
    """The merges of CLIP's tokenizer, from the hub's cache or from an installed package.

    Raises:
        WeightsError: neither has them.
    """
    for file in _files_with_merges():
        if len(lines := _read_merges(file)) == _MERGE_COUNT:
            return lines
    raise WeightsError(
        "a single-file checkpoint has no tokenizer, and CLIP's is not on this machine",
        "fetch it once with `ctxedit models pull clip`, or pip install --no-deps open_clip_torch",
    )


def _files_with_merges() -> Iterator[Path]:
    for hub_id in _WITH_MERGES:
        if (folder := hub.snapshot(hub_id)) is not None:
            files = (folder / part / name for part in ("", "tokenizer") for name in _NAMES)
            yield from (file for file in files if file.is_file())
    for package in _PACKAGES:
        found = importlib.util.find_spec(package)
        for place in found.submodule_search_locations or () if found else ():
            if (file := Path(place) / _PACKED).is_file():
                yield file


def _read_merges(file: Path) -> list[str]:
    """Each merge as two pieces with a space between them; empty for a file that is something else."""
    try:
        if file.suffix == ".json":
            pairs = json.loads(file.read_bytes())["model"]["merges"]
            return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return text.decode("utf-8").splitlines()[1 : _MERGE_COUNT + 1]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return []


def _write_tokenizer(folder: Path, padding: str) -> None:
    """CLIP's tokenizer: bytes, bytes at a word's end, one token for each merge, start and end."""
    merges = _merges()
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # printable; the others get signs above
    signs = [*map(chr, kept), *(chr(256 + n) for n in range(256 - len(kept)))]
    joined = [line.replace(" ", "") for line in merges]
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *joined, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": original.LENGTH, "pad_token": padding,
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
