"""Commands that are killed on the way, run again to their end, and compared with an undisturbed run.

Half of the kills are aimed: an audit hook counts what the process does to files (open for writing, rename,
remove, start ffmpeg) and kills it before the k-th of these, or a moment after; k walks through all
of them over a scenario's kills. The others come at a random time as SIGKILL, SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from children import INTERRUPTED, Ended, Signal, apart, call, complaint
from tiny import make_pixel_upscaler
from trees import contents, difference

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "tiger-beach.mp4"
_SMALL = [
    "--frames", "2", "--stride", "1", "--tune-steps", "3", "--set", "tune.save_every=1", "--steps", "2",
]  # fmt: skip
_PROMPT = ["--prompt", "a tiger"]
_LIST = f"""[[clips]]
path = "{SAMPLE}"
prompt = "a tiger walking on the beach"
[[clips.targets]]
prompt = "a panda walking on the beach"
kind = "object"
"""
_FEW = "[clip]\nframes = 2\n[tune]\nsteps = 2\n[invert]\nsteps = 2\n[edit]\nsteps = 2\n"
_RECIPE = """part = "autoencoder"
[task]
channels = [8, 16, 16]
layers = 1
kl = 1e-5
edges = 1.0
[schedule]
steps = 4
save_seconds = 0
batch = 4
lr = 1e-3
warmup = 1
workers = 0
[data]
"""


@dataclass(frozen=True)
class Scenario:
    """A command line, and what lies in the folder before it.

    Attributes:
        before: a command that is run first, undisturbed and once for all.
        files: name to text.
        weights: makes files that are no text, in a folder.
    """

    name: str
    arguments: tuple[str, ...]
    before: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    weights: Callable[[Path], None] | None = None


def _make_upscaler(folder: Path) -> None:
    make_pixel_upscaler(folder / "models" / "upscaler")


def _make_lora(folder: Path) -> None:
    """A LoRA of one projection of the built-in UNet, in diffusers' format."""
    import torch
    from safetensors.torch import load_file, save_file

    from ctxedit.models.weights import BUILTIN_FOLDER

    (file,) = (BUILTIN_FOLDER / "unet").glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.endswith("attn2.to_q.weight"))
    rows, columns = weights[name].shape
    draw, layer = torch.Generator().manual_seed(0), name.removesuffix(".weight")
    down, up = (torch.randn(shape, generator=draw) * 0.1 for shape in ((2, columns), (rows, 2)))
    parts = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    save_file(parts, folder / "lora.safetensors")


_WINDOWS = ("--set", "window.size=3", "--set", "window.overlap=1")
_UPSCALE = ("--upscaler", "models/upscaler", "--set", "upscale.steps=1")
_RUN = ("run", str(SAMPLE), *_PROMPT, "--target", "a panda", *_SMALL)
_TUNE = ("tune", str(SAMPLE), *_PROMPT, *_SMALL[:-2])
SCENARIOS = {
    one.name: one
    for one in (
        Scenario("run", _RUN),
        Scenario("run -o", (*_RUN, "-o", "out.mp4")),
        Scenario("tune", _TUNE),
        Scenario("edit", ("edit", "--target", "a panda", "--steps", "2"), _TUNE),
        Scenario(
            "bench",
            ("bench", "list.toml", "--presets", "ddim,contextdiff", "--config", "few.toml", "-o", "out"),
            files=(("list.toml", _LIST), ("few.toml", _FEW)),
        ),
        Scenario("train", ("train", "small.toml", "--out", "mine"), files=(("small.toml", _RECIPE),)),
        Scenario("windows", (*_RUN, "--frames", "5", *_WINDOWS)),
        Scenario("upscale", (*_RUN, "--frames", "5", *_WINDOWS, *_UPSCALE), weights=_make_upscaler),
        Scenario("lora", (*_RUN, "--lora", "lora.safetensors"), weights=_make_lora),
        Scenario("t2i", ("t2i", "a tiger on the beach", "--steps", "4", "-o", "tiger.png")),
        Scenario(
            "batch", ("batch", "list.csv", *_SMALL, "-o", "out"),
            files=(("list.csv", f"path,prompt,target\n{SAMPLE},a tiger,a panda\n{SAMPLE},a tiger,a cat\n"),),
        ),
    )
}  # fmt: skip


class FileEvents:
    """An audit hook that counts what the process does to files below a folder, and kills it at one of them.

    Args:
        at: the number of the event to die at, from 0; negative only counts.
        delay: seconds from the event to the end; 0 ends it before the event takes place.
        note: a file to write the count to, at the end of a run that is not to be killed.
    """

    _NAMED = frozenset(
        ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
    )

    def __init__(self, folder: Path, at: int = -1, delay: float = 0.0, note: Path | None = None) -> None:
        self.folder, self.at, self.delay, self.note, self.count = str(folder), at, delay, note, 0

    def install(self) -> None:
        """Begin to count; a hook cannot be taken off again, so only in a child."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._counts(event, arguments):
            return
        if self.count == self.at:
            if self.delay:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, as SIGKILL does
                signal.setitimer(signal.ITIMER_REAL, self.delay)
            else:
                os.killpg(0, signal.SIGKILL)
        self.count += 1
        if self.note is not None:
            with open(os.open(self.note, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(str(self.count))

    def _counts(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "subprocess.Popen":
            return True
        if event != "open" and event not in self._NAMED:
            return False
        path = arguments[0]
        if not isinstance(path, str | os.PathLike):
            return False
        where = os.path.abspath(os.fspath(path))
        if self.note is not None and where == str(self.note):
            return False
        writes = event != "open" or (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        return bool(writes) and where.startswith(self.folder)


@dataclass(frozen=True)
class Undisturbed:
    """A scenario's reference: what it leaves, how long it takes, how many file events it has."""

    tree: dict[str, str]
    seconds: float
    events: int


def prepare(scenario: Scenario, base: Path) -> Undisturbed:
    """Run a scenario undisturbed; what lies in its folder before it is kept as ``base/NAME.before``."""
    start = base / f"{scenario.name}.before"
    start.mkdir(parents=True)
    for name, text in scenario.files:
        (start / name).write_text(text)
    if scenario.weights is not None:
        apart(partial(scenario.weights, start))
    if scenario.before:
        _succeed(call(list(scenario.before), start), scenario.name)
    folder = base / scenario.name
    shutil.copytree(start, folder)
    note = base / f"{scenario.name}.events"
    ended = call(list(scenario.arguments), folder, before=FileEvents(folder, note=note).install)
    _succeed(ended, scenario.name)
    tree = contents(folder)
    shutil.rmtree(folder)
    return Undisturbed(tree, ended.seconds, int(note.read_text()))


def _succeed(ended: Ended, name: str) -> None:
    if ended.code != 0:
        raise SystemExit(f"{name} fails undisturbed (exit {ended.code}): {ended.err.strip()[-500:]}")


@dataclass(frozen=True)
class Blow:
    """How a process is stopped: before or after a file event, or by a signal at a time."""

    event: int | None = None
    delay: float = 0.0
    signal: Signal | None = None

    def __str__(self) -> str:
        if self.signal is None:
            return f"at file event {self.event}" + (f" + {1000 * self.delay:.0f} ms" if self.delay else "")
        return f"{signal.Signals(self.signal.number).name} after {self.signal.after:.2f} s"


def draw(number: int, kills: int, reference: Undisturbed, rng: random.Random) -> Blow:
    """The ``number``-th of a scenario's ``kills`` blows."""
    if number % 2 == 0:
        event = (
            number * reference.events // max(kills, 1)
        )  # all of them in turn, as evenly as there are kills
        return Blow(event, rng.choice([0.0, 0.0, rng.uniform(0.0005, 0.03)]))
    what = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    after = rng.uniform(0.02, 1.0) * reference.seconds
    return Blow(signal=Signal(what, after, group=what != signal.SIGTERM))


def kill_once(scenario: Scenario, blow: Blow, reference: Undisturbed, base: Path, folder: Path) -> str | None:
    """Stop a run, run it again to its end and compare; returns what is wrong, or None."""
    shutil.copytree(base / f"{scenario.name}.before", folder)
    try:
        arguments = list(scenario.arguments)
        at = -1 if blow.event is None else blow.event
        limit = 120 + 10 * reference.seconds  # a busy machine is slow; only what hangs takes longer
        before = FileEvents(folder, at, blow.delay).install
        first = call(arguments, folder, stop=blow.signal, before=before, limit=limit)
        if found := _end_complaint(first, blow):
            return f"stopped: {found}"
        time.sleep(0.02)
        again = call(arguments, folder, limit=limit)
        if found := complaint(again, (0,)):
            return f"run again: {found}"
        found = difference(reference.tree, contents(folder))
        return f"afterwards: {found}" if found else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_complaint(ended: Ended, blow: Blow) -> str | None:
    number = signal.SIGKILL if blow.signal is None else blow.signal.number
    allowed = (
        {0, -number, 128 + number, INTERRUPTED} if number != signal.SIGKILL else {0, -number, -signal.SIGALRM}
    )
    if number == signal.SIGINT:
        allowed.discard(-number)
    return complaint(ended, tuple(allowed))
