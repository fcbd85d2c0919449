"""Every file that ctxedit reads, damaged, and read by the command that reads it.

A *kind* is one file and the command that reads it. What is allowed: success, or an exit code that says what
is wrong with one ``error:`` and one ``hint:`` line. No traceback, no exit 1, no signal, an end within the
limits of time and memory; the damaged file is left as it is and no temporary file stays. Where the file is
a run's own artefact, success must also give the edit that the undamaged one gives.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from children import TOLD, Ended, call, complaint
from kills import _FEW, _LIST, _RECIPE, ROOT, SAMPLE, FileEvents
from mutations import mutate

LIMIT = 60.0
MEMORY = 3 << 30
_SHORT = ("--frames", "2", "--stride", "1", "--steps", "1")
_DRY = ("--prompt", "a tiger", "--target", "a panda", *_SHORT, "--dry-run")
_ONCE = ("--prompt", "a tiger", "--frames", "2", "--stride", "1", "--tune-steps", "1")
_MODEL = ROOT / "ctxedit" / "bundled" / "weights"


@dataclass(frozen=True)
class Kind:
    """A file to damage and what reads it.

    Attributes:
        ground: the name of the folder, made by :class:`Ground`, that is copied for each trial.
        file: a glob in it; the one damaged.
        arguments: the command.
        text: whether the file is text.
        same: whether success must leave the result that the undamaged file gives.
    """

    ground: str
    file: str
    arguments: tuple[str, ...]
    text: bool = False
    same: bool = False


_EDIT = ("edit", "--target", "a panda", "--steps", "2")
_T2I = ("t2i", "a tiger", "--model", "model", "--steps", "1", "-o", "a.png")
_ANSWERS = ("bench", "answers", "out", "answers.json")
KINDS = {
    **{
        f"media {name}": Kind("media", name, ("tune", name, *_ONCE))
        for name in ("a.mp4", "a.mkv", "a.webm", "a.gif", "a.webp")
    },
    "media png": Kind("media", "frames/0001.png", ("tune", "frames", *_ONCE)),
    "eval mp4": Kind("media", "a.mp4", ("eval", "--video", "a.mp4", "--prompt", "a tiger")),
    "mask png": Kind("media", "mask.png", ("run", "a.mp4", "--mask", "mask.png", *_DRY)),
    "config": Kind("text", "config.toml", ("run", str(SAMPLE), "--config", "config.toml", *_DRY), text=True),
    "preset": Kind("text", "preset.toml", ("run", str(SAMPLE), "--preset", "preset.toml", *_DRY), text=True),
    "list": Kind("text", "list.toml", ("bench", "list.toml", "--presets", "ddim", "--dry-run"), text=True),
    "recipe": Kind("text", "recipe.toml", ("train", "recipe.toml", "--dry-run"), text=True),
    "run.toml": Kind("run", "runs/*/run.toml", _EDIT, text=True, same=True),
    "tuned": Kind("tuned", "runs/*/tune/tuned.safetensors", _EDIT, same=True),
    "run adapter": Kind("tuned", "runs/*/tune/adapter.safetensors", _EDIT, same=True),
    "inversion": Kind("inverted", "runs/*/inversion.safetensors", _EDIT, same=True),
    "edit frames": Kind("run", "runs/*/edits/*.safetensors", _EDIT, same=True),
    "edit video": Kind("run", "runs/*/edits/*[0-9a-f].mp4", _EDIT, same=True),
    "state.pt": Kind(
        "stopped", "runs/*/tune/state.pt",
        ("run", str(SAMPLE), "--target", "a panda", "--steps", "2", *_ONCE[:-1], "4",
         "--set", "tune.save_every=1"),
        same=True,
    ),
    "adapter": Kind("adapter", "a.safetensors", ("t2i", "a tiger", "--adapter", "a.safetensors", *_T2I[4:])),
    **{
        f"model {name}": Kind("model", f"model/{name}", _T2I, text=True)
        for name in (
            "model_index.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
            "unet/config.json", "vae/config.json", "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        )
    },
    "model weights": Kind("model", "model/unet/diffusion_pytorch_model.safetensors", _T2I),
    "answers.json": Kind("compared", "answers.json", _ANSWERS, text=True),
    "study key": Kind("compared", "out/study/key.json", _ANSWERS, text=True),
    "results.jsonl": Kind("compared", "out/results.jsonl", ("bench", "study", "out", "-y"), text=True),
}  # fmt: skip


class Ground:
    """Undamaged folders, made once for the kinds asked for, and the edit that a run's artefacts stand for."""

    def __init__(self, base: Path, kinds: list[str]) -> None:
        self.base = base
        #: Ground to the hash of the edit's frames.
        self.edits: dict[str, str | None] = {}
        base.mkdir(parents=True)
        for name in dict.fromkeys(KINDS[kind].ground for kind in kinds):
            (base / name).mkdir(exist_ok=True)
            _MAKERS[name](base / name)
        for kind in kinds:
            if KINDS[kind].same:
                self.edits[kind] = self._edit(KINDS[kind], base / "undamaged")

    def _edit(self, kind: Kind, folder: Path) -> str | None:
        """What the undamaged run's command gives."""
        shutil.copytree(self.base / kind.ground, folder)
        _succeed(call(list(kind.arguments), folder))
        found = _frames(folder)
        shutil.rmtree(folder)
        return found


def mutate_once(
    ground: Ground, name: str, rng: random.Random, folder: Path, keep: Path | None
) -> tuple[str, str | None]:
    """Damage one file of a kind and run its command; returns what was done and what is wrong, if anything."""
    kind = KINDS[name]
    # Hard links would be damaged with the copy; weights are linked symbolically, all else is small.
    shutil.copytree(ground.base / kind.ground, folder, symlinks=True)
    try:
        file = _file(folder, kind.file)
        original = file.read_bytes()
        damaged, how = mutate(original, kind.text, rng)
        file.unlink()
        file.write_bytes(damaged)
        before = _names(folder)
        ended = call(list(kind.arguments), folder, limit=LIMIT, memory=MEMORY)
        found = _fault(ground, name, ended, folder, file, damaged) or _left(folder, before)
        if found and keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{folder.name}{file.suffix}".replace("/", "_")).write_bytes(damaged)
        return how, found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fault(ground: Ground, name: str, ended: Ended, folder: Path, file: Path, damaged: bytes) -> str | None:
    kind = KINDS[name]
    if found := complaint(ended, (0, *TOLD)):
        return found
    if not kind.same and (not file.exists() or file.read_bytes() != damaged):
        return f"exit {ended.code}, and the damaged file was changed or deleted"
    if kind.same and ended.code == 0:
        # A run.toml may be damaged into that of another seed or clip, which asks for another edit.
        if kind.file.endswith("run.toml"):
            return None
        if _frames(folder) != ground.edits[name]:
            return "exit 0 with another edit than the undamaged file gives"
    return None


def _left(folder: Path, before: set[str]) -> str | None:
    """Temporary files that were not there before."""
    left = [name for name in _names(folder) - before if ".part" in name or name.endswith((".tmp", ".old"))]
    return f"left over: {', '.join(sorted(left)[:3])}" if left else None


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _file(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def _frames(folder: Path) -> str | None:
    """A hash of the edit's frames and of its video: of all edits, in order; None where there is no edit."""
    digest, found = hashlib.sha256(), False
    for file in sorted(folder.glob("runs/*/edits/*")):
        if file.suffix in (".safetensors", ".mp4", ".png"):
            digest.update(file.name.encode() + file.read_bytes())
            found = True
    return digest.hexdigest() if found else None


# -- undamaged folders -------------------------------------------------------------------------------------


def _succeed(ended: Ended) -> None:
    if ended.code != 0:
        raise SystemExit(f"the trial's own ground fails (exit {ended.code}): {ended.err.strip()[-500:]}")


def _media(folder: Path) -> None:
    import subprocess

    import imageio_ffmpeg
    from PIL import Image

    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-nostdin", "-threads", "1"]
    picture = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=10:duration=1"]
    sound = ["-f", "lavfi", "-i", "sine=f=440:d=1"]
    codecs = {"a.mp4": ["-c:v", "libx264"], "a.mkv": ["-c:v", "libx264"], "a.webm": ["-c:v", "libvpx-vp9"]}
    for name, codec in codecs.items():
        subprocess.run([*ffmpeg, *picture, *sound, *codec, "-pix_fmt", "yuv420p", folder / name], check=True)
    subprocess.run([*ffmpeg, *picture, folder / "a.gif"], check=True)
    frames = [Image.effect_noise((96, 64), 20 + i).convert("RGB") for i in range(4)]
    frames[0].save(folder / "a.webp", save_all=True, append_images=frames[1:], duration=100)
    (folder / "frames").mkdir()
    for i, frame in enumerate(frames):
        frame.save(folder / "frames" / f"{i:04d}.png")
    Image.new("L", (96, 64), 255).save(folder / "mask.png")


def _texts(folder: Path) -> None:
    preset = (ROOT / "presets" / "contextdiff.toml").read_text()
    for name, text in {"config": _FEW, "preset": preset, "list": _LIST, "recipe": _RECIPE}.items():
        (folder / f"{name}.toml").write_text(text)


_TUNE = ("tune", str(SAMPLE), *_ONCE)


def _tuned(folder: Path) -> None:
    _succeed(call(list(_TUNE), folder))


def _edited(folder: Path) -> None:
    _tuned(folder)
    _succeed(call(list(_EDIT), folder))


def _inverted(folder: Path) -> None:
    """A run with its inversion and without an edit towards what will be asked for."""
    _tuned(folder)
    _succeed(call(["edit", "--target", "a cat", "--steps", "2"], folder))


def _stopped(folder: Path) -> None:
    """A tuning that was killed after its second state."""
    arguments = list(KINDS["state.pt"].arguments)
    for event in range(10, 200):  # until one dies where the state is there and the weights are not
        shutil.rmtree(folder / "runs", ignore_errors=True)
        call(arguments, folder, before=FileEvents(folder, event).install)
        states, ends = list(folder.glob("runs/*/tune/state.pt")), list(folder.glob("runs/*/tune/tuned*"))
        temporary = [p for p in folder.rglob(".*") if p.is_file() and p.suffix != ".lock"]
        if states and not ends and not temporary:
            return
    raise SystemExit("no tuning could be stopped with its state written")


def _adapter(folder: Path) -> None:
    _tuned(folder)
    _file(folder, "runs/*/tune/adapter.safetensors").replace(folder / "a.safetensors")
    shutil.rmtree(folder / "runs")


def _model(folder: Path) -> None:
    """The built-in models under another name: what may be damaged is copied, large weights are linked."""
    for file in _MODEL.rglob("*"):
        place = folder / "model" / file.relative_to(_MODEL)
        if file.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".safetensors":
                os.symlink(file, place)
            else:
                shutil.copy(file, place)


def _compared(folder: Path) -> None:
    import json

    (folder / "list.toml").write_text(_LIST)
    (folder / "few.toml").write_text(_FEW)
    command = ["bench", "list.toml", "--presets", "ddim,contextdiff", "--config", "few.toml", "-o", "out"]
    _succeed(call(command, folder))
    _succeed(call(["bench", "study", "out"], folder))
    key = json.loads((folder / "out" / "study" / "key.json").read_text())
    answers = [{"id": one["id"], "text": "a", "temporal": "b"} for one in key["questions"]]
    (folder / "answers.json").write_text(
        json.dumps({"study": key["study"], "rater": "r", "answers": answers}, indent=1)
    )


_MAKERS: dict[str, Callable[[Path], None]] = {
    "media": _media, "text": _texts, "tuned": _tuned, "run": _edited, "inverted": _inverted,
    "stopped": _stopped, "adapter": _adapter, "model": _model, "compared": _compared,
}  # fmt: skip
