"""From what a person calls a model to a checkpoint on disk: names, hub ids, folders, single files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ctxedit.contents import fingerprint
from ctxedit.errors import CtxeditError, WeightsError, did_you_mean
from ctxedit.files import check_file, check_model_files, expanded, neighbour, process_folder
from ctxedit.model_names import BUILTIN, VOCABULARY, id_within, is_own
from ctxedit.model_names import SHORT_NAMES as SHORT_NAMES
from ctxedit.models import hub, layout
from ctxedit.models.families import family_named, layout_named
from ctxedit.models.single_file import open_single_file
from ctxedit.models.sizes import read_json

#: From a pipeline's class and a model's name to what its folders are.
_Named = Callable[[str, str], type[Any]]
#: The built-in models' folder, in diffusers' layout.
BUILTIN_FOLDER = Path(__file__).parents[1] / "bundled" / "weights"


@dataclass(frozen=True)
class Checkpoint:
    """Location of a model's files.

    Attributes:
        name: labels results.
        path: the folder or the file.
        form: which of the two.
        has_weights: False while only its config files and tokenizers were fetched.
    """

    name: str
    path: Path
    form: Literal["folder", "file"]
    has_weights: bool = True

    @property
    def builtin(self) -> bool:
        return self.path == BUILTIN_FOLDER

    @property
    def settings(self) -> Path:
        """The folder of its config files and tokenizers; a single file's are derived from its tensors."""
        return self.path if self.form == "folder" else open_single_file(self.path).folder

    @property
    def note(self) -> str | None:
        """Assumptions made about a single file; None without any."""
        return None if self.form == "folder" else open_single_file(self.path).note

    @property
    def own(self) -> Path | None:
        """The folder, if the models are ctxedit's own, built in or not; None for those from elsewhere."""
        return self.path if (self.path / VOCABULARY).is_file() else None


def locate(model: str, offline: bool = False, half: bool = False) -> Checkpoint:
    """Find a model without loading it; a hub id is fetched into the cache unless ``offline``.

    Args:
        model: ``builtin``, a short name, a hub id, a diffusers folder, or one ``.safetensors`` file.
        offline: look into the hub's cache only (``HF_HUB_OFFLINE`` is respected as well).
        half: the network will run in half precision: its fp16 files are fetched where there are some.

    Raises:
        WeightsError: nothing there, a folder without ``model_index.json``, pickled weights.
        OutputError: the disk is full.
    """
    if model == BUILTIN:
        if not (BUILTIN_FOLDER / "model_index.json").is_file():
            raise WeightsError("the built-in models are not installed", "reinstall ctxedit")
        return Checkpoint(BUILTIN, BUILTIN_FOLDER, "folder")
    path = expanded(model)
    layout.refuse_other_formats(model, path)
    if path.suffix.lower() == ".safetensors":
        check_file(path, "checkpoint", error=WeightsError)
        return Checkpoint(path.stem, path, "file")
    if os.path.isdir(path):
        name, path = _completed(path.resolve())
        return Checkpoint(name, _diffusers_folder(path), "folder")
    hub_id = SHORT_NAMES.get(model, model)
    if not is_hub_id(model):
        raise WeightsError(
            f"no model named {model!r}",
            f"{id_within(model) or did_you_mean(model, ('builtin', *SHORT_NAMES)) or neighbour(path)}"
            f"builtin, {', '.join(SHORT_NAMES)}, a hub id (owner/name), a folder or a file",
        )
    return Checkpoint(hub_id, _diffusers_folder(_download(hub_id, offline, half)), "folder")


def is_hub_id(model: str) -> bool:
    """Whether a model's setting means a repository on the hub, by short name or id."""
    path = expanded(model)
    if model == BUILTIN or os.path.exists(path) or path.suffix.lower() in (".safetensors", *layout.PICKLES):
        return False
    return model in SHORT_NAMES or (model.count("/") == 1 and not model.startswith((".", "/", "~")))


def own_folder(model: str) -> Path | None:
    """Folder of one of ctxedit's own models; None for any other checkpoint."""
    if not is_own(model):
        return None
    return BUILTIN_FOLDER if model == BUILTIN else expanded(model).resolve()


def own_part(setting: str, own: Path | None, part: str) -> tuple[Path, str] | None:
    """Folder and name of ctxedit's own ``clip`` or ``captioner``, if the setting means that.

    ``builtin`` is the package's; ``auto`` is the one next to the model in ``own``, or the package's if
    there is none. None for a setting that means one from elsewhere.
    """
    if setting == "auto" and own is not None and own != BUILTIN_FOLDER and (own / part).is_dir():
        return own / part, f"{own.name}/{part}"
    if setting == BUILTIN or (setting == "auto" and own is not None):
        return BUILTIN_FOLDER / part, BUILTIN
    return None


def identity(model: str) -> str:
    """Identity of a model: its id for one on the hub, a hash of the files read for one on disk.

    Files on disk may be retrained, overwritten or moved. ctxedit's own have both, name and hash. What is not
    there, or cannot be read, is known by its name: loading it says what is wrong.
    """
    own = own_folder(model)
    if own is not None:
        return f"{model} {_version(own, ('vae', 'text_encoder', 'unet', 'controlnet'))}"
    path = expanded(model)
    try:
        if path.is_file():
            beside = path.with_suffix(".yaml")  # says what the network predicts
            return f"file {fingerprint(path)}" + (f" {fingerprint(beside)}" if beside.is_file() else "")
        return f"folder {_pipeline_print(path)}" if path.is_dir() else model
    except (CtxeditError, OSError, ValueError):  # also a name that is too long, or has a NUL
        return model


def part_identity(setting: str, own: Path | None, part: str) -> str:
    """As :func:`identity`, of a model beside it: the ``clip``, ``captioner`` or ``upscaler`` of a setting.

    Args:
        setting: what the settings name: a keyword, a hub id, or the path of a folder.
        own: the folder of ctxedit's own models; None for a model from elsewhere.
        part: the folder within ``own``.
    """
    if (found := own_part(setting, own, part)) is not None:
        return f"{found[1]} {_version(found[0].parent, (part,))}"
    path = Path(setting)
    return folder_identity(path) if path.is_absolute() and path.is_dir() else setting


def folder_identity(folder: Path) -> str:
    """Identity of a folder of one network: its files without pickles, which are never read."""
    return fingerprint(folder, skip=layout.PICKLES)


def _pipeline_print(folder: Path) -> str:
    """A hash of a pipeline's folders; those that a training's checkpoint lacks are its parent's."""
    root = folder if (folder / "model_index.json").is_file() else folder.parent
    family = family_named(pipeline_of(root), str(folder))
    places = {
        part: folder / part if (folder / part).is_dir() else root / part
        for part in (*family.networks_in, *family.others_in)
    }
    prints = [f"{part} {folder_identity(place)}" for part, place in places.items()]
    whole = "\n".join([fingerprint(root / "model_index.json"), *prints])
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


def pretrained_adapter(folder: Path | None) -> Path | None:
    """The context adapter that was trained with a folder's model on images and texts; None without one."""
    file = None if folder is None else folder / "adapter" / "adapter.safetensors"
    return file if file is not None and file.is_file() else None


def judge_identity(name: str = "judge") -> str:
    """A hash of the judge, or of the composition judge."""
    return _version(BUILTIN_FOLDER, (name,))


def _version(folder: Path, names: tuple[str, ...]) -> str:
    files = [file for name in names for file in sorted((folder / name).glob("*.safetensors"))]
    for file in files:
        check_file(file, "weights", error=WeightsError)  # reading a FIFO would wait
    return _hash(tuple((str(file), file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=16)
def _hash(files: tuple[tuple[str, int], ...]) -> str:
    found = hashlib.sha256()
    for file, _ in files:
        found.update(Path(file).read_bytes())
    return found.hexdigest()[:16]


def pipeline_of(folder: Path) -> str:
    """The pipeline class that a folder's ``model_index.json`` names; raises WeightsError for a broken one."""
    return str(read_json(folder / "model_index.json").get("_class_name"))


def pipeline_folder(name: str, offline: bool, half: bool) -> Path:
    """The folder of a further pipeline, such as an upscaler, by hub id or path; downloaded if needed.

    Raises:
        WeightsError: nothing there, an unknown kind of pipeline, folders or weights missing.
    """
    path = expanded(name)
    if os.path.isdir(path):
        return _diffusers_folder(path, layout_named)
    if not is_hub_id(name):
        raise WeightsError(
            f"no folder or hub id {name!r}",
            f"{neighbour(path)}give a diffusers folder, or an id (owner/name)",
        )
    return _diffusers_folder(_download(name, offline, half, layout_named), layout_named)


def _download(hub_id: str, offline: bool, half: bool, named: _Named = family_named) -> Path:
    """The folder of a hub id in the cache; downloads only what its pipeline needs."""
    if (found := in_cache(hub_id, half)) is not None:
        return found
    if hub.is_offline(offline):
        raise hub.offline_error(hub_id)
    there = hub.listing(hub_id)
    names = selection(family_at(there, named), hub_id)(there.names, half)
    check_remote(there, names)
    return hub.fetch(there, names)


def selection(family: Any, name: str) -> layout.Select:
    """Which files of a repository a family needs."""
    return layout.pipeline(family.networks_in, family.others_in, name)


def selection_at(there: hub.Listing) -> layout.Select:
    """Which files of a repository are needed: a pipeline's folders, or one network at the top.

    A pipeline's index alone is fetched: an unknown family is refused before the rest is asked for.
    """
    if "model_index.json" not in there.names:
        return layout.flat(there.hub_id)
    return selection(family_at(there, layout_named), there.hub_id)


def family_at(there: hub.Listing, named: _Named = family_named) -> Any:
    """The family of a repository, from its index; with ``layout_named`` it may be no backbone."""
    if "model_index.json" not in there.names:
        raise WeightsError(
            f"{there.hub_id} has no model_index.json", "--model takes a repository in diffusers' format"
        )
    index = hub.fetch(there, ["model_index.json"], verify=True)
    return named(pipeline_of(index), there.hub_id)


def check_remote(there: hub.Listing, names: Collection[str]) -> Checkpoint:
    """Fetch a repository's small files, and refuse a pipeline that cannot be edited with.

    ``names`` are the files needed: of a pipeline all but the weights are fetched, of one network its config.
    Returns the repository without weights; its folder need not exist if nothing small is needed.

    Raises:
        WeightsError: what its family's ``check`` refuses.
    """
    pipeline = "model_index.json" in names
    if pipeline:
        small = [name for name in names if not name.endswith(".safetensors")]
    else:
        small = [name for name in names if name == "config.json"]
    folder = hub.fetch(there, small, verify=True) if small else hub.place_of(there.hub_id)
    found = Checkpoint(there.hub_id, folder, "folder", has_weights=False)
    if pipeline:
        layout_named(pipeline_of(folder), there.hub_id).check(found)
    return found


def in_cache(hub_id: str, half: bool) -> Path | None:
    """The snapshot of a repository of either kind, if all that is needed of it is in the cache."""
    known = hub.snapshot(hub_id)
    if known is None:
        return None
    if not (known / "model_index.json").is_file():
        return hub.cached(hub_id, layout.flat(hub_id), half)
    family = layout_named(pipeline_of(known), hub_id)
    return hub.cached(hub_id, selection(family, hub_id), half)


def _completed(path: Path) -> tuple[str, Path]:
    """A folder's name, and the folder; what a checkpoint of a training lacks is taken from its parent.

    The training scripts of diffusers leave ``OUT/checkpoint-500/unet`` and the like, and at their end a whole
    pipeline in ``OUT``.
    """
    around = path.parent
    inside = [part for part in ("unet", "text_encoder", "text_encoder_2") if (path / part).is_dir()]
    if (path / "model_index.json").is_file() or (path / "vae").is_dir() or not inside:
        return path.name, path
    if not (around / "model_index.json").is_file():
        raise WeightsError(
            f"{path} holds only {' and '.join(f'{part}/' for part in inside)}, and there is no pipeline "
            f"around it in {around}",
            f"copy the base model's folders and model_index.json to {around}, then name {path.name} again",
        )
    whole = process_folder()
    try:
        for found in (*around.iterdir(), *(path / part for part in inside)):
            if found.name in inside and found.parent == around:
                continue
            if (found.is_dir() and not found.name.startswith("checkpoint-")) or found.suffix == ".json":
                (whole / found.name).symlink_to(found)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be joined with the pipeline in {around}: {error.strerror}",
            "copy the pipeline, and replace its folders with the checkpoint's",
        ) from error
    return f"{around.name}/{path.name}", whole


def _diffusers_folder(path: Path, named: _Named = family_named) -> Path:
    if not (path / "model_index.json").is_file():
        near = _pipeline_near(path)
        raise WeightsError(
            f"{path} has no model_index.json",
            f"{near} has one" if near else "a model folder is one that diffusers' save_pretrained wrote",
        )
    pipeline = pipeline_of(path)
    family = named(pipeline, str(path))
    for part in (*family.networks_in, *family.others_in):
        if not (path / part).is_dir():
            raise WeightsError(f"{path} has no folder {part}/", f"every {pipeline} has one; save it again")
    check_model_files(path, (*family.networks_in, *family.others_in))
    for part in family.networks_in:
        names = [file.name for file in (path / part).iterdir()]
        found = layout.require(names, str(path / part))
        if found.index:
            _check_index(path / part / found.index, names)
    return path


def _pipeline_near(path: Path) -> Path | None:
    """A diffusers folder around or within a folder, such as a repository in the hub's cache."""
    near = (path.glob(f"{where}model_index.json") for where in ("../", "*/", "snapshots/*/"))
    return next((found.parent.resolve() for one in near for found in one), None)


def _check_index(file: Path, names: Collection[str]) -> None:
    """Raise WeightsError for an index of shards that names files that are not there, or is none."""
    table = read_json(file).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise WeightsError(f"{file} is not an index of shards", "fetch or copy it again")
    if lost := sorted({str(name) for name in table.values()} - set(names)):
        raise WeightsError(f"{file.parent} lacks {lost[0]}, which its index names", "fetch or copy it again")


def network(cls: Any, path: Path, part: str, dtype: torch.dtype) -> Any:
    """One of diffusers' networks, from safetensors only, with no missing weight."""
    network, report = cls.from_pretrained(
        path, subfolder=part, torch_dtype=dtype, use_safetensors=True, output_loading_info=True,
        local_files_only=True, variant=variant_of(path / part, dtype),
    )  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(
            f"{path / part} lacks {len(missing)} weights, including {missing[0]}", "fetch or save it again"
        )
    return network


def variant_of(folder: Path, dtype: torch.dtype) -> str | None:
    """Which of a folder's weights fit a precision: ``fp16``, or None for the full precision."""
    found = layout.choose((file.name for file in folder.iterdir()), is_half(dtype))
    return None if found is None else found.variant


def is_half(dtype: torch.dtype) -> bool:
    """Whether the fp16 files of a checkpoint are enough for this precision."""
    return dtype.itemsize == 2


def check_finite(module: nn.Module, name: str) -> None:
    """Raise WeightsError when a weight is NaN or infinite."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{name}: NaN or infinity in {key}", "the checkpoint is broken; fetch it again"
            )
