"""Recipes: TOML files that name a part, its task's settings, its data and its schedule; and running them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.torch import load_file
from torch import nn

from ctxedit.bundled.training import onward, record
from ctxedit.bundled.training.data import DataConfig
from ctxedit.bundled.training.loop import Done, Schedule, Task, clear, make_accelerator, read_state, train
from ctxedit.bundled.training.parts import borrow, find
from ctxedit.config import merge
from ctxedit.errors import ConfigError
from ctxedit.models.device import name_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
#: The order in which each part finds what it needs of the others.
ORDER = (
    "autoencoder", "decoder", "clip", "captioner", "denoiser", "control", "adapter", "judge",
    "composition-judge",
)  # fmt: skip
#: Folders in diffusers' layout.
FOLDERS = {
    "autoencoder": "vae",
    "decoder": "vae",
    "clip": "clip",
    "captioner": "captioner",
    "denoiser": "unet",
    "control": "controlnet",
    "adapter": "adapter",
    "judge": "judge",
    "composition-judge": "composition-judge",
}
#: Of the schedule: how the work is done, not what comes of it; a training may go on with other values.
_FREE = ("steps", "save_seconds", "workers", "precision", "batch", "accumulate")
_SIDE = 16
#: Parts whose samples are each other's negatives: a pass of fewer would be another task.
_TOGETHER = ("clip",)


@dataclass(frozen=True)
class Recipe:
    """One part's training: ``part`` names the task, ``task`` its settings, ``schedule`` the loop's.

    Attributes:
        name: the file's, without suffix.
        about: what it trains, in a line.
        licence: of the weights that come of it; empty where the recipe does not say.
        warm: it goes on from the weights there are, or the built-in ones, as with ``--warm``.
        text: the TOML that it was read from, or that it comes to with what was changed since.
    """

    part: str
    task: dict[str, Any]
    schedule: Schedule
    data: DataConfig = field(default_factory=DataConfig)
    name: str = ""
    about: str = ""
    licence: str = ""
    text: str = ""
    warm: bool = False

    @property
    def sha256(self) -> str:
        """Of ``text``."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Where its weights lie within a folder of models."""
        return FOLDERS[self.part]

    def in_passes(self, passes: int) -> Recipe:
        """The same steps, each in so many passes of fewer samples: less memory, more time.

        CLIP's samples stay together: they are each other's negatives.

        Raises:
            ConfigError: the batch is no multiple of them.
        """
        if passes == 1 or self.part in _TOGETHER:
            return self
        batch, rest = divmod(self.schedule.images, passes)
        if rest:
            raise ConfigError(
                f"{self.name}: {self.schedule.images} samples a step in {passes} passes", "choose a divisor"
            )
        return self.changed({"batch": batch, "accumulate": passes}, {})

    def changed(self, schedule: Mapping[str, Any], data: Mapping[str, Any]) -> Recipe:
        """A copy with other settings; its text becomes that of the whole."""
        if not schedule and not data:
            return self
        new = replace(self, schedule=replace(self.schedule, **schedule), data=merge(self.data, data, "data."))
        table = {
            "part": new.part, "about": new.about, "licence": new.licence, "warm": new.warm, "task": new.task,
            "data": asdict(new.data),
            "schedule": {key: value for key, value in asdict(new.schedule).items() if value is not None},
        }  # fmt: skip
        return replace(new, text=tomli_w.dumps(table))


def names() -> list[str]:
    """The built-in recipes, in their order; what the order does not know comes last."""
    found = [p.stem for p in RECIPES.glob("*.toml")]
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def resolve(name: str) -> Recipe:
    """A recipe by a built-in one's name, or by the path of a TOML file."""
    path = Path(name)
    return load(path if path.suffix == ".toml" else RECIPES / f"{name}.toml")


def load(path: Path) -> Recipe:
    """Read a recipe; raises :class:`ConfigError` for what does not fit."""
    try:
        text = path.read_text()
        blob = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"no recipe {path}", f"the built-in ones are: {', '.join(names())}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: {error}") from error
    try:
        return _parse(blob, path, text)
    except KeyError as error:
        raise ConfigError(f"recipe {path} lacks {error}", "it has part, [task] and [schedule]") from error
    except TypeError as error:
        raise ConfigError(f"recipe {path}: {error}".replace("Schedule.__init__() ", "")) from error
    except ConfigError as error:
        raise ConfigError(f"recipe {path}: {error.message}", error.hint) from error


def _parse(blob: dict[str, Any], path: Path, text: str) -> Recipe:
    known = {"part", "task", "schedule", "data", "about", "licence", "warm"}
    if unknown := sorted(set(blob) - known):
        raise ConfigError(f"unknown key {unknown[0]}", f"known here: {', '.join(sorted(known))}")
    if blob["part"] not in FOLDERS:
        raise ConfigError(f"no part named {blob['part']!r}", f"parts are: {', '.join(ORDER)}")
    data = merge(DataConfig(), blob.get("data", {}), "data.")
    if data.path and not Path(data.path).expanduser().is_absolute():
        data = replace(data, path=str(path.parent / data.path))
    schedule = merge(Schedule(steps=1, batch=1, lr=0.0), blob["schedule"], "schedule.")
    if lacking := [name for name in ("steps", "batch", "lr") if name not in blob["schedule"]]:
        raise ConfigError(f"no schedule.{lacking[0]}", "steps, batch and lr have no default")
    if data.size < _SIDE or data.size % _SIDE:
        raise ConfigError(f"data.size = {data.size}", f"a multiple of {_SIDE}: networks halve it four times")
    for name in ("steps", "batch", "accumulate"):
        if getattr(schedule, name) < 1:
            raise ConfigError(f"schedule.{name} = {getattr(schedule, name)}", "at least 1")
    return Recipe(
        blob["part"], dict(blob["task"]), schedule, data,
        path.stem, str(blob.get("about", "")), str(blob.get("licence", "")), text,
        bool(blob.get("warm", False)),
    )  # fmt: skip


def make_task(recipe: Recipe, weights: Path, origin: Path | None = None) -> Task:
    """Build the part's task.

    Args:
        recipe: of the part.
        weights: folder of the parts that were trained before it. Parts that it lacks are the built-in ones;
            what a pipeline needs of them is copied there.
        origin: folder of the weights that a part goes on from, where it does; unless given, those there.

    Raises:
        ConfigError: settings that the task does not take.
    """
    try:
        settings = {"data": recipe.data, **recipe.task}
        if recipe.part in onward.PARTS:
            settings["autoencoder"] = origin or find(weights, recipe.folder)
        if recipe.part == "clip" and recipe.warm:
            settings["onto"] = find(weights, recipe.folder)
        return _make_task(recipe.part, settings, recipe.data, weights)
    except TypeError as error:
        if "__init__" not in str(error):
            raise
        line = str(error).split("__init__() ", 1)[-1]
        raise ConfigError(f"recipe {recipe.name or recipe.part}, [task]: {line}") from error


def _make_task(part: str, settings: dict[str, Any], data: DataConfig, weights: Path) -> Task:
    if part == "autoencoder":
        from ctxedit.bundled.training.autoencoder import AutoencoderTask

        return AutoencoderTask(**settings)
    if part == "decoder":
        from ctxedit.bundled.training.autoencoder import DecoderTask

        return DecoderTask(**settings)
    if part == "clip":
        from ctxedit.bundled.training.clip import ClipTask

        return ClipTask(**settings)
    if part == "captioner":
        from ctxedit.bundled.training.captioner import CaptionerTask

        return CaptionerTask(find(weights, "clip"), **settings)
    if part == "denoiser":
        from ctxedit.bundled.training.denoiser import DenoiserTask

        borrow(weights, "vae", "text_encoder", "tokenizer")
        return DenoiserTask(weights / "vae", weights / "text_encoder", weights / "tokenizer", **settings)
    if part == "control":
        from ctxedit.bundled.training.control import ControlTask, finished_denoiser

        borrow(weights, "vae", "text_encoder", "tokenizer", "unet")
        own = {k: settings.pop(k) for k in ("embedding", "low", "high") if k in settings}
        return ControlTask(finished_denoiser(weights, **settings), **own)
    if part == "adapter":
        from ctxedit.bundled.training.adapter import AdapterTask

        if settings.get("train"):  # then the pipeline is another one
            borrow(weights, "vae", "text_encoder", "tokenizer")
        needed = {"autoencoder": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
        folders = {key: find(weights, name) for key, name in needed.items()}
        return AdapterTask(find(weights, "unet"), **folders, **settings)
    if part == "composition-judge":
        from ctxedit.bundled.training.composition_judge import CompositionJudgeTask

        return CompositionJudgeTask(**settings)
    from ctxedit.bundled.training.judge import JudgeTask

    return JudgeTask(**settings)


def _main_network(task: Task, part: str) -> nn.Module:
    """The network whose weights lie in the part's folder; others may be trained along."""
    if not isinstance(task.model, nn.ModuleDict):
        return task.model
    network: nn.Module = task.model["adapter" if part == "adapter" else "unet"]
    return network


def warm_start(model: nn.Module, folder: Path) -> None:
    """Put trained weights into a fresh model; raises ConfigError when they are not of its shape."""
    tensors = {
        k: v.float() for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{folder} does not fit the recipe", "train anew, without --warm") from error
    # Weights that are tied are saved once: what is missing must be another name of what is there.
    known = {p.data_ptr() for name, p in model.named_parameters() if name in tensors}
    if unknown or any(
        p.data_ptr() not in known for n, p in model.named_parameters(remove_duplicate=False) if n in missing
    ):
        raise ConfigError(f"{folder} does not fit the recipe", "train anew, without --warm")


@dataclass(frozen=True)
class Options:
    """How a training is run.

    Attributes:
        warm: with no state to resume, start from the weights there are (or the built-in ones).
        anew: forget the state there is.
        again: export a training that is done once more: another part took its weights' place.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        tensorboard: folder for event files, or None.
    """

    warm: bool = False
    anew: bool = False
    again: bool = False
    device: str = "auto"
    tensorboard: Path | None = None


def run(
    recipe: Recipe,
    state: Path,
    weights: Path,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    options: Options | None = None,
) -> Done:
    """Train one part into ``weights/<folder>``, resumable from ``state/<part>``; a record is left beside it.

    The task is built from the recipe's seed, so that its first weights are part of the recipe.

    Returns:
        What has been done in all.

    Raises:
        ConfigError: the state is of another recipe; and as :func:`ctxedit.bundled.training.loop.train`.
    """
    import torch

    options = options or Options()
    place, folder = state / recipe.part, weights / recipe.folder
    accelerator = make_accelerator(recipe.schedule, options.device)
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            if options.anew:
                clear(place)
            check_same(recipe, place)
            onward.check(recipe.part, place, folder)
        goes_on = recipe.part in onward.PARTS
        origin = onward.begin(recipe.part, place, weights, recipe.folder) if goes_on else None
        torch.manual_seed(recipe.schedule.seed)
        task = make_task(recipe, weights, origin)
    if (options.warm or recipe.warm) and not goes_on and not (place / "state.pt").exists():
        origin = find(weights, recipe.folder)
        if not getattr(task, "warm", False):  # one that needs more than the weights has begun by itself
            warm_start(_main_network(task, recipe.part), origin)
    # Nobody may save a state before everyone has looked for one.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        remember(recipe, place, origin)
    last = Done()

    def exported(done: Done) -> None:
        nonlocal last
        last = done
        facts = record.Facts(
            done.step, done.seconds, len(done.bad), name_of(accelerator.device), accelerator.num_processes
        )
        record.write(recipe, facts, weights, record.started_from(place))

    train(
        task, recipe.schedule, place, folder, report=report,
        accelerator=accelerator, exported=exported, tensorboard=options.tensorboard,
        lacking=lambda steps: options.again or onward.is_lacking(recipe.part, folder, steps),
    )  # fmt: skip
    if last.step == 0 and (blob := read_state(place / "state.pt")):
        last = Done(int(blob["step"]), float(blob.get("seconds", 0.0)), dict(blob.get("bad", {})))
    return last


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """What may not change while a training goes on."""
    schedule = {k: v for k, v in asdict(recipe.schedule).items() if k not in _FREE}
    schedule["images"] = recipe.schedule.images  # in however many passes
    if recipe.part in _TOGETHER:
        schedule["batch"] = recipe.schedule.batch
    data = {k: v for k, v in asdict(recipe.data).items() if k != "on_error"}
    if not recipe.data.compositions:
        del data["compositions"]  # states of before there were any can go on
    return {"part": recipe.part, "task": recipe.task, "data": data, "schedule": schedule}


def check_same(recipe: Recipe, place: Path) -> None:
    """Raise ConfigError when ``place`` holds the state of a training by another recipe."""
    file = place / record.BEGUN
    if not (place / "state.pt").exists() or not file.is_file():
        return
    before, now = tomllib.loads(file.read_text()), _fixed(recipe)
    for table, value in now.items():
        if before.get(table) != value:
            keys = [k for k in value if value[k] != before.get(table, {}).get(k)] if table != "part" else []
            raise ConfigError(
                f"the training in {place} was begun with another {'.'.join([table, *keys[:1]])}",
                "give another --state, or -y to begin anew",
            )


def remember(recipe: Recipe, place: Path, origin: Path | None) -> None:
    """Note in the state's folder with what a training began: ``origin`` holds the weights, if it was warm.

    The record beside those is noted as well: the training's own may soon lie in its place.
    """
    file = place / record.BEGUN
    if file.is_file() and (place / "state.pt").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / record.BEFORE).unlink(missing_ok=True)
    if origin is not None and (known := record.read(origin)) is not None:
        (place / record.BEFORE).write_text(json.dumps(known))
    warm = {} if origin is None else record.hashes(origin)
    file.write_text(tomli_w.dumps({**_fixed(recipe), "warm": warm}))
