"""One training: a recipe, the state that it is resumed from, and the weights that it produces."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from accelerate import Accelerator

from ctxedit.errors import ConfigError, InputError
from ctxedit.locks import held
from ctxedit.media.temporary import atomic, sweep
from ctxedit.models.device import name_of
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.training import record
from ctxedit.training.components import (
    PIPELINE_FILES,
    Components,
    copy_missing,
    find_component,
    hashes,
    link_components,
)
from ctxedit.training.loop import Done, check_placement, clear, make_accelerator, read_state, train
from ctxedit.training.memory import check_training
from ctxedit.training.progress_log import read_metrics, seconds_of
from ctxedit.training.recipe import Recipe
from ctxedit.training.tasks import base as tasks
from ctxedit.training.tasks.base import Task


@dataclass(frozen=True)
class TrainOptions:
    """How a training is run.

    Attributes:
        warm: without a state to resume, start from existing weights, or else from the built-in ones.
        restart: discard the state.
        export_again: export a finished training again, because another task replaced its weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        tensorboard: folder for TensorBoard's event files, or None.
    """

    warm: bool = False
    restart: bool = False
    export_again: bool = False
    device: str = "auto"
    tensorboard: Path | None = None


@dataclass(frozen=True)
class Training:
    """The training of one recipe.

    A task that continues another's replaces the weights that it starts from. They are therefore copied next
    to its state, so that it can be restarted from the same weights.

    Attributes:
        recipe: what to train.
        states: folder of the states of all tasks.
        models: folder of models that the weights are exported into, and whose components are used.
    """

    recipe: Recipe
    states: Path
    models: Path

    @property
    def state(self) -> Path:
        """Folder of the state, the settings that it was started with, and the metrics."""
        return self.states / self.recipe.part

    @property
    def state_file(self) -> Path:
        """The resumable state."""
        return self.state / "state.pt"

    @property
    def weights(self) -> Path:
        """Folder of the exported weights."""
        return self.models / self.recipe.folder

    @property
    def _snapshots(self) -> Path:
        return self.models / "snapshots"

    @property
    def continues(self) -> str | None:
        """The task whose weights this one starts from and replaces."""
        return self.recipe.task_type.continues

    @property
    def started(self) -> bool:
        """Whether there is a state to resume."""
        return self.state_file.exists()

    def steps_done(self, warn: Callable[[str], None] = lambda text: None) -> int:
        """Steps of the saved state; 0 without one, or if it is damaged, with a warning to ``warn``."""
        saved = read_state(self.state_file, warn)
        return int(saved["step"]) if saved else 0

    # -- the weights that a training starts from ---------------------------------------------------------

    @property
    def _initial_copy(self) -> Path:
        return self.state.with_name(f"{self.state.name}-origin")

    def initial_weights(self, restart: bool = False) -> Path:
        """What a task that continues another's starts from, or has started from.

        With ``restart`` the state is ignored. The copy is then still valid if the existing weights are the
        copied ones or were trained from them; otherwise they are new, and the training starts from them.
        """
        present, copy = find_component(self.models, self.recipe.folder), self._initial_copy
        if not copy.is_dir():
            return present
        if self.started and not restart:
            return copy
        copied = hashes(copy)
        return copy if hashes(present) == copied or self._trained_from(present, copied) else present

    def _keep_initial_weights(self) -> Path:
        """:meth:`initial_weights`, copied next to the state if the training is about to start."""
        found, copy = self.initial_weights(), self._initial_copy
        if found == copy or self.started:
            return found
        with atomic(copy, True) as temporary:
            shutil.copytree(found, temporary)
        return copy

    def _trained_from(self, folder: Path, initial: Mapping[str, str]) -> bool:
        """Whether the weights in a folder are this task's, trained from weights with these hashes."""
        known = record.read(folder) or {}
        return (known.get("part"), known.get("began_with")) == (self.recipe.part, dict(initial))

    def is_stale(self) -> bool:
        """Whether the weights to replace are neither those that the training started from nor its own.

        Weights that do not match their record are ignored: a training that is killed during an export
        leaves such weights.
        """
        if self.continues is None or not self.started or record.owner_of(self.weights) is None:
            return False
        initial = record.started_from(self.state).files
        return hashes(self.weights) != initial and not self._trained_from(self.weights, initial)

    # -- resuming ----------------------------------------------------------------------------------------

    def check_settings(self) -> None:
        """Raise ConfigError if the state is of a training with other settings."""
        before, now = record.read_started(self.state), self.recipe.resume_settings
        if not self.started or not before:
            return
        for table, value in now.items():
            if before.get(table) != value:
                old = before.get(table, {})
                keys = [k for k in value if value[k] != old.get(k)] if table != "part" else []
                raise ConfigError(
                    f"{self.state} was started with a different {'.'.join([table, *keys[:1]])}",
                    "use another --state, or pass -y to start again",
                )

    def check_resumable(self) -> None:
        """Raise ConfigError if the state is of other settings, or :meth:`is_stale`."""
        self.check_settings()
        if self.is_stale():
            raise ConfigError(
                f"{self.weights} has changed since the training in {self.state} started from it",
                "pass -y to start again from the present weights, or use another --state",
            )

    def _remember_start(self, initial: Path | None) -> None:
        """Write the settings, and the hashes and record of the initial weights, next to the state.

        The record is copied because the training's own record soon replaces it.
        """
        file, previous = self.state / record.STARTED, self.state / record.PREVIOUS
        if record.read_started(self.state) and self.started:
            return
        self.state.mkdir(parents=True, exist_ok=True)
        previous.unlink(missing_ok=True)
        if initial is not None and (known := record.read(initial)) is not None:
            with atomic(previous, True) as temporary:
                temporary.write_text(json.dumps(known))
        warm = {} if initial is None else hashes(initial)
        with atomic(file, True) as temporary:
            temporary.write_text(tomli_w.dumps({**self.recipe.resume_settings, "warm": warm}))

    # -- the exported weights ----------------------------------------------------------------------------

    def needs_export(self, steps: int) -> bool:
        """Whether the weights after ``steps`` steps are not in their folder.

        They are there if a task that continues this one started from them, or if they were trained longer.
        """
        part, known = self.recipe.part, record.read(self.weights) or {}
        if known.get("part") in _continuing(part):
            known = next((r for r in record.history(self.weights) if r.get("part") == part), {})
        elif known.get("files") != hashes(self.weights):
            return True
        return known.get("part") != part or known.get("steps", 0) < steps

    def owner(self) -> str | None:
        """The task that made the weights in the folder: according to their record, else to the states; None
        if unknown."""
        if (recorded := record.owner_of(self.weights)) is not None:
            return recorded
        present = hashes(self.weights)
        for name in _continuing(self.recipe.part):
            state = self.states / name
            if (state / "state.pt").exists() and present != record.started_from(state).files:
                return name
        return None

    # -- running -----------------------------------------------------------------------------------------

    def build_task(self, initial: Path | None = None, models: Path | None = None) -> Task:
        """The task, on the components in ``models`` (default: this training's).

        Raises:
            ConfigError: settings that the task does not take, or that do not fit.
            ResourceError: a network that does not fit into memory.
        """
        recipe = self.recipe
        if self.continues is not None and initial is None:
            initial = self.initial_weights()
        components = Components(models or self.models, initial, recipe.folder)
        try:
            return recipe.task_type.build(components, recipe.data, recipe.task)
        except ConfigError as error:
            raise ConfigError(f"recipe {recipe.name or recipe.part}: {error.message}", error.hint) from error

    def plan(self, restart: bool = False, device: str = "auto") -> dict[str, Any]:
        """The plan of the training, as a table. The task is built; nothing is written.

        Raises:
            ConfigError, ResourceError: as :meth:`run`.
        """
        recipe = self.recipe
        place, processes = check_placement(recipe.schedule, device)
        with tempfile.TemporaryDirectory() as folder:
            task = self.build_task(models=link_components(self.models, Path(folder)))
        self._check_memory(task, place, processes)
        if not restart:
            self.check_resumable()
        listing = task.data.listing
        table = {
            "part": recipe.part,
            "about": recipe.about,
            "parameters": sum(p.numel() for p in task.model.parameters() if p.requires_grad),
            "data": record.describe_data(recipe),
            "pictures": "endless" if listing is None else len(listing.entries),
            "bad": 0 if listing is None else len(listing.bad),
            "steps": recipe.schedule.steps,
            "first step": 0 if restart else self.steps_done(),
            "images": recipe.schedule.steps * recipe.schedule.images,
            "weights": str(self.weights),
            "state": str(self.state),
        }
        if self.continues is not None:
            table["starts from"] = str(self.initial_weights(restart))
        return table

    def _check_memory(self, task: Task, device: torch.device, processes: int) -> None:
        """Raise ResourceError if weights, optimiser and images exceed the available memory."""
        schedule, pixels = self.recipe.schedule, 3 * self.recipe.data.size**2
        share = pixels * schedule.batch // processes
        check_training(task.model, share, share * schedule.accumulate, device)

    def run(
        self,
        report: Callable[[dict[str, float]], None],
        options: TrainOptions | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Done:
        """Train, resuming from the state if there is one; export the weights with their record.

        The task is built with the recipe's seed, so that its initial weights are determined by the recipe.
        Waits for another process that trains with the same state, with a message to ``say``.

        Returns:
            The totals, including earlier runs.

        Raises:
            ConfigError: settings that do not fit, or a state that cannot be resumed.
            ResourceError: not enough memory, or no such device.
            NumericsError, OutputError, InputError: as :func:`ctxedit.training.loop.train`.
        """
        options = options or TrainOptions()
        accelerator = make_accelerator(self.recipe.schedule, options.device)
        with self._alone(say) if accelerator.is_main_process else nullcontext():
            return self._run(report, options, accelerator)

    @contextmanager
    def _alone(self, say: Callable[[str], None]) -> Iterator[None]:
        """Lock the state, and delete partly written files of killed processes."""
        new = [folder for folder in (self.states, *self.states.parents) if not folder.exists()]
        self.states.mkdir(parents=True, exist_ok=True)
        lock = self.states / f".{self.recipe.part}.lock"  # next to the folder, which a restart deletes
        waiting = f"another ctxedit trains with the state in {self.state}: waiting for it to finish"
        try:
            with held(lock, lambda: say(waiting)):
                for folder in (self.state, self.states, self.models):
                    sweep(folder)
                yield
        except ConfigError:
            if new and not self.state.exists():  # refused before it began: nothing is left behind
                lock.unlink(missing_ok=True)
                with suppress(OSError):
                    for folder in new:
                        folder.rmdir()
            raise

    def _run(
        self, report: Callable[[dict[str, float]], None], options: TrainOptions, accelerator: Accelerator
    ) -> Done:
        recipe = self.recipe
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                if options.restart:
                    clear(self.state)
                self.check_resumable()
            initial = self._keep_initial_weights() if self.continues is not None else None
            torch.manual_seed(recipe.schedule.seed)
            task = self.build_task(initial)
            self._check_memory(task, accelerator.device, accelerator.num_processes)
        if (options.warm or recipe.warm) and initial is None and read_state(self.state_file) is None:
            initial = find_component(self.models, recipe.folder)
            task.load_weights(initial)
        # No process may save a state before all have looked for one.
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if not self.started:
                self._drop_snapshots()
            self._remember_start(initial)
        last = Done()

        def exported(done: Done) -> None:
            nonlocal last
            last = done
            device, processes = name_of(accelerator.device), accelerator.num_processes
            facts = record.Facts(done.step, done.seconds, len(done.bad), device, processes)
            record.write(recipe, facts, self.models, record.started_from(self.state))

        train(
            task, recipe.schedule, self.state, self.weights, report=report,
            accelerator=accelerator, exported=exported, tensorboard=options.tensorboard,
            needs_export=lambda steps: options.export_again or self.needs_export(steps),
            snapshot=self._prepare_snapshot,
        )  # fmt: skip
        if last.step == 0 and (saved := read_state(self.state_file)):
            last = Done(int(saved["step"]), float(saved.get("seconds", 0.0)), dict(saved.get("bad", {})))
        return last

    def _prepare_snapshot(self, steps: int) -> Path:
        """The folder for the weights after so many steps, in a copy of the pipeline that they belong to."""
        models = self._snapshots / f"{steps:06d}"
        models.mkdir(parents=True, exist_ok=True)
        parts = {"vae", "text_encoder", "tokenizer", "unet", *PIPELINE_FILES} - {self.recipe.folder}
        copy_missing(sorted(parts), (self.models, BUILTIN_FOLDER), models)
        return models / self.recipe.folder

    def _drop_snapshots(self) -> None:
        """Delete an earlier training's snapshots: at other steps, they would be taken for this one's."""
        if self.recipe.schedule.snapshots > 1:
            for folder in self._snapshots.glob("[0-9]" * 6):
                shutil.rmtree(folder)

    def write_record(self) -> Path:
        """Write the record of weights that lack one, from the state that they were exported from.

        Raises:
            InputError: there is no state, or the weights are another task's.
        """
        if (owner := self.owner()) not in (None, self.recipe.part):
            raise InputError(
                f"{self.weights} contains weights of the {owner}", f"use --record with the {owner}'s recipe"
            )
        saved = read_state(self.state_file)
        if saved is None:
            raise InputError(f"no state in {self.state}", "pass the --state of their training")
        steps, images = int(saved["step"]), self.recipe.schedule.images
        seconds = saved.get("seconds") or seconds_of(read_metrics(self.state), steps, images)
        # States of the first version do not name the device, which was a CPU.
        facts = record.Facts(steps, seconds, len(saved.get("bad", {})), saved.get("device", "cpu"))
        return record.write(self.recipe, facts, self.models, record.started_from(self.state))


def _continuing(part: str) -> list[str]:
    """The tasks that continue a task's weights."""
    return [name for name in tasks.names() if tasks.get(name).continues == part]
