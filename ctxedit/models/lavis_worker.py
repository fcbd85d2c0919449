"""LAVIS's side of the captioner: runs in LAVIS's interpreter (Python 3.8 or later), without ctxedit.

One JSON object a line. In on stdin, out on stdout:
    (start)                                        {"type": "hello", "version": 1, "python": "3.8.20"}
    {"type": "load", "model": m, "model_type": t}  {"type": "ready", "device": "cuda"}
    {"type": "caption", "id": 7, "path": "a.png"}  {"type": "caption", "id": 7, "text": "a cat"}
    {"type": "shutdown"}, or end of input          (ends)
Anything that goes wrong: {"type": "error", "kind": "import" | "load" | "caption", "message": "…", "id": 7}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

VERSION = 1


class Captioner:
    """The model, once it is loaded."""

    def __init__(self, model: str, model_type: str) -> None:
        import torch
        from lavis.models import load_model_and_preprocess

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, processors, _ = load_model_and_preprocess(
            name=model, model_type=model_type, is_eval=True, device=self.device
        )
        if self.device == "cpu":
            self.model = self.model.float()  # LAVIS reads OPT in half precision, which a CPU cannot run
        self.prepare = processors["eval"]

    def caption(self, path: str) -> str:
        from PIL import Image

        image = self.prepare(Image.open(path).convert("RGB")).unsqueeze(0).to(self.device)
        texts = self.model.generate({"image": image}, use_nucleus_sampling=False, num_beams=5)
        return texts[0].strip() if texts else ""


def leave_own_folder() -> None:
    """Python puts a script's folder first on the path, and ours has a lavis.py."""
    own = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or os.curdir) != own]


def take_stdout() -> TextIO:
    """Keep stdout for the protocol; the output of libraries goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def failure(kind: str, error: Exception, number: int | None = None) -> dict[str, Any]:
    return {
        "type": "error",
        "kind": kind,
        "message": "%s: %s" % (type(error).__name__, error),  # noqa: UP031
        "id": number,
    }


def main() -> None:
    leave_own_folder()
    channel = take_stdout()

    def say(reply: dict[str, Any]) -> None:
        channel.write(json.dumps(reply) + "\n")
        channel.flush()

    say({"type": "hello", "version": VERSION, "python": sys.version.split()[0]})
    captioner = None
    for line in sys.stdin:
        request = json.loads(line)
        kind = request["type"]
        if kind == "shutdown":
            return
        try:
            if kind == "load":
                captioner = Captioner(request["model"], request["model_type"])
                say({"type": "ready", "device": captioner.device})
            elif captioner is None:
                raise RuntimeError("asked for a caption before a model was loaded")
            else:
                say({"type": "caption", "id": request["id"], "text": captioner.caption(request["path"])})
        except ImportError as error:
            say(failure("import", error, request.get("id")))
        except Exception as error:
            say(failure(kind, error, request.get("id")))


if __name__ == "__main__":
    main()
