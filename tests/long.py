"""What a long clip costs, and whether its windows show: memory, time and seams.

    python tests/long.py [memory] [seams] [--frames 1000] [--steps 2] [--seam-frames 96] [--json]

Run it on an otherwise idle machine; without a name both are measured. Clips are drawn: a scene that goes to
and fro, so that neighbouring frames differ as much in a long clip as in a short one.

memory  Inverts, edits and scores the clip's first 24 frames (one window) and all of them, in a process each,
        untuned, unguided and with few steps. Peak memory is the process's resident set, mapped files
        included; tuning, which takes more, has one window in memory whatever the clip. Time is CPU time of
        inversion and edit. Goals: memory at most 1.1 times, time a frame at most 1.2 times.
seams   Edits clips with the preset's own steps. Neighbouring frames are compared by pixels (RMS) and by CLIP
        (1 - cosine): the mean over those where two windows overlap, divided by the mean over the others.
        The source's own ratio says what its motion does there. Goal: at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

#: One window of the default size.
SHORT = 24
LEG = 16
#: Scenes of the drawn world by seed, and what is edited in each.
SCENES = (3, 7, 11)


def draw(path: Path, frames: int, seed: int) -> tuple[str, str]:
    """A clip of a scene that goes to and fro; its caption, and a target that asks for another background."""
    from ctxedit.media.write import write_clip
    from ctxedit.synthetic import scenes

    rng = np.random.default_rng(seed)
    scene = scenes.draw_scene(rng, pairs=0.0)
    leg = scenes.render(scene, LEG, 64)[0]
    turn = np.concatenate([leg, leg[-2:0:-1]])
    write_clip(path, turn[np.arange(frames) % len(turn)], Fraction(8))
    return scenes.caption(scene), scenes.caption(scenes.change(scene, rng, "background"))


def request(clip: Path, frames: int, words: tuple[str, str], runs: Path, **tables: Any) -> Any:
    """The request of an edit of the clip's first frames."""
    from ctxedit import api
    from ctxedit.editing.request import Request

    config = api.settings("contextdiff", {"clip": {"frames": frames, "stride": 1}, **tables})
    return Request(clip, config, prompt=words[0], targets=(words[1],), offline=True, runs=runs)


def work(clip: Path, frames: int, words: tuple[str, str], steps: int) -> dict[str, float]:
    """All stages of one edit but tuning: CPU seconds of inversion and edit."""
    from ctxedit.editing.session import Session

    with tempfile.TemporaryDirectory(dir=clip.parent) as folder:
        edit = {"steps": steps, "guidance": 1.0}
        few = {"tune": {"steps": 0}, "invert": {"steps": steps}, "edit": edit}
        with Session(request(clip, frames, words, Path(folder), **few)) as session:
            session.tune()
            began = time.process_time()
            session.invert()
            session.edit(words[1])
            seconds = time.process_time() - began
            session.evaluate(session.key("edit", words[1])[0])
    return {"seconds": seconds}


def measure_memory(folder: Path, frames: int, steps: int) -> dict[str, Any]:
    """Peak bytes and CPU seconds a frame of a short and of a long edit."""
    clip, out = folder / "long.mp4", {}
    words = draw(clip, frames, SCENES[0])
    for count in (SHORT, frames):
        command = [sys.executable, __file__, "--work", str(clip), str(count), *words, str(steps)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the edit of {count} frames failed")
        scale = 1 if sys.platform == "darwin" else 1024
        out[count] = {"peak": usage.ru_maxrss * scale, "a_frame": json.loads(said)["seconds"] / count}
    short, long = out[SHORT], out[frames]
    return {
        "frames": frames, "steps": steps,
        "peak_short": short["peak"], "peak_long": long["peak"], "peak_ratio": long["peak"] / short["peak"],
        "a_frame_short": short["a_frame"], "a_frame_long": long["a_frame"],
        "time_ratio": long["a_frame"] / short["a_frame"],
    }  # fmt: skip


def distances(frames: np.ndarray, scorer: Any) -> dict[str, np.ndarray]:
    """Of each frame to the next, (F - 1,): by pixels and by CLIP."""
    steps = (frames[1:].astype(np.float32) - frames[:-1]) / 255
    seen = scorer.embed_images(frames).double()
    cosines = (seen[1:] * seen[:-1]).sum(-1).numpy()
    return {"pixels": np.sqrt((steps**2).mean((1, 2, 3))), "clip": 1 - cosines}


def measure_seams(folder: Path, frames: int, sheet: Path | None) -> dict[str, Any]:
    """Distance of neighbouring frames at the windows' borders over that inside, of edit and source."""
    from ctxedit.editing.session import Session
    from ctxedit.media.write import contact_sheet, write_image

    gathered: dict[str, list[np.ndarray]] = {"pixels": [], "clip": []}
    own: dict[str, list[np.ndarray]] = {"pixels": [], "clip": []}
    at_border: list[np.ndarray] = []
    for seed in SCENES:
        clip = folder / f"seams-{seed}.mp4"
        words = draw(clip, frames, seed)
        with Session(request(clip, frames, words, folder / "runs")) as session:
            edited = np.array(session.bring("frames", words[1]))
            source = np.array(session.parts.prepared.frames)
            windows = session.parts.windows
            for name, values in distances(edited, session.parts.scorer).items():
                gathered[name].append(values)
            for name, values in distances(source, session.parts.scorer).items():
                own[name].append(values)
        border = np.zeros(frames - 1, bool)
        for window in windows[1:]:
            # From the last frame of one window alone to the first of the next alone.
            border[max(0, window.start - 1) : window.start + window.shared] = True
        at_border.append(border)
        if sheet is not None:
            near = slice(windows[1].start - 3, windows[1].start + windows[1].shared + 3)
            rows = [(f"source: {words[0]}", source[near]), (f"edit: {words[1]}", edited[near])]
            picture = contact_sheet(rows, columns=near.stop - near.start)
            write_image(sheet.with_name(f"{sheet.stem}-{seed}{sheet.suffix}"), picture, overwrite=True)
    where = np.concatenate(at_border)
    found: dict[str, Any] = {"frames": frames, "windows": len(windows), "clips": len(SCENES)}
    for name in gathered:
        edit, source = np.concatenate(gathered[name]), np.concatenate(own[name])
        mine, theirs = (float(x[where].mean() / x[~where].mean()) for x in (edit, source))
        found |= {f"{name}_edit": mine, f"{name}_source": theirs}
    return found


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        clip, frames, prompt, target, steps = sys.argv[2:]
        print(json.dumps(work(Path(clip), int(frames), (prompt, target), int(steps))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help="memory, seams or both")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seam-frames", type=int, default=96)
    parser.add_argument("--sheet", type=Path, help="write the frames around the first seam, e.g. seam.png")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    what, found = asked.what or ["memory", "seams"], {}
    with tempfile.TemporaryDirectory() as folder:
        if "memory" in what:
            found["memory"] = measure_memory(Path(folder), asked.frames, asked.steps)
        if "seams" in what:
            found["seams"] = measure_seams(Path(folder), asked.seam_frames, asked.sheet)
    if asked.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key:14} {value:,.4g}" if isinstance(value, float) else f"  {key:14} {value:,}")


if __name__ == "__main__":
    main()
