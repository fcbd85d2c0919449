"""Captions from LAVIS, which needs an old Python and an old transformers: a worker in its own interpreter.

The worker is ``lavis_worker.py``, and its docstring is the protocol.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from ctxedit.errors import CtxeditError, ResourceError, WeightsError
from ctxedit.files import expanded, neighbour
from ctxedit.models.captioner import shares

VERSION = 1
SETUP = (
    "set LAVIS up once: python3.9 -m venv ~/lavis && ~/lavis/bin/pip install salesforce-lavis, "
    "then --captioner lavis --lavis-python ~/lavis/bin/python"
)
_WORKER = Path(__file__).with_name("lavis_worker.py")
_NOISE = 1000  # lines on stdout that are no messages, before giving up
_LINE = 1 << 20


class LavisCaptioner:
    """BLIP-2 as LAVIS runs it. The worker starts with the first caption and lives until :meth:`close`.

    Args:
        python: LAVIS's interpreter, a path or a command on ``PATH``.
        model, model_type: LAVIS's names.
        timeout: seconds for one caption, and for the worker to say hello.
        load_timeout: seconds to load the model; the first time LAVIS fetches some 15 GB.
        worker: the script that speaks the protocol; LAVIS's unless given.

    Raises:
        WeightsError: no such interpreter; when captioning, LAVIS or its model is not there, or the worker
            does not speak the protocol.
        ResourceError: the worker took too long or was killed, by the system if memory ran out.
    """

    def __init__(
        self,
        python: str | Path,
        model: str = "blip2_opt",
        model_type: str = "caption_coco_opt2.7b",
        timeout: float = 300.0,
        load_timeout: float = 3600.0,
        worker: Path | None = None,
    ) -> None:
        found = shutil.which(str(expanded(python)))
        if found is None:
            raise WeightsError(f"no Python interpreter at {python}", f"{neighbour(Path(python))}{SETUP}")
        self.name = f"lavis:{model}/{model_type}"
        self._command = [found, "-u", str(worker or _WORKER)]
        self._model = {"model": model, "model_type": model_type}
        self._timeout, self._load_timeout = timeout, load_timeout
        self._link: _Link | None = None

    def caption(self, images: list[np.ndarray]) -> list[str]:
        """One caption for each image ``(H, W, 3)`` uint8 RGB."""
        try:
            link = self._link or self._start()
            with tempfile.TemporaryDirectory(prefix="ctxedit-lavis-") as folder:
                return [self._one(link, number, image, folder) for number, image in enumerate(images)]
        except BaseException:
            self.close(at_once=True)  # a late answer would be taken for the next request's
            raise

    def propose(self, images: list[np.ndarray]) -> dict[str, float]:
        """The images' captions; LAVIS tells no likelihoods, so their shares stand for these."""
        return shares(self.caption(images))

    def close(self, at_once: bool = False) -> None:
        """End the worker: politely, then not."""
        link, self._link = self._link, None
        if link is not None:
            link.close(grace=0.0 if at_once else 5.0)

    def __enter__(self) -> LavisCaptioner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> _Link:
        link = self._link = _Link(self._command)
        hello = link.receive("hello", self._timeout)
        if hello.get("version") != VERSION:
            raise WeightsError(
                f"the LAVIS worker uses version {hello.get('version')} of the protocol, not {VERSION}",
                "use the lavis_worker.py of this ctxedit",
            )
        link.send({"type": "load", **self._model})
        link.receive("ready", self._load_timeout)
        return link

    def _one(self, link: _Link, number: int, image: np.ndarray, folder: str) -> str:
        path = Path(folder) / f"{number}.png"
        Image.fromarray(image).save(path)
        link.send({"type": "caption", "id": number, "path": str(path)})
        return str(link.receive("caption", self._timeout, number).get("text", ""))


class _Link:
    """A worker process and its lines. A thread reads them, so that waiting can end."""

    def __init__(self, command: list[str]) -> None:
        # Our interpreter's paths would put our packages before LAVIS's own.
        ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={key: value for key, value in os.environ.items() if key not in ours},
            )
        except OSError as error:
            raise WeightsError(f"{command[0]} does not start ({error.strerror})", SETUP) from error
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._complaints: deque[bytes] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        self._listener.start()

    def send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:  # a broken pipe
            raise self._died() from error

    def receive(self, kind: str, timeout: float, number: int | None = None) -> dict[str, Any]:
        """The next message of this kind (and with this id); lines that are no message are passed over."""
        end = time.monotonic() + timeout
        line: bytes | None = b""
        for _ in range(_NOISE):
            try:
                line = self._lines.get(timeout=max(end - time.monotonic(), 0))
            except queue.Empty:
                raise ResourceError(
                    f"the LAVIS worker gave no {kind} within {timeout:g} seconds{self._tail()}",
                    "allow more time, or take --captioner blip2",
                ) from None
            if line is None:
                raise self._died()
            message = _message(line)
            if message.get("type") == "error":
                raise self._failed(message)
            if message.get("type") == kind and message.get("id") == number:
                return message
        raise WeightsError(
            f"the LAVIS worker's output does not follow the protocol: {line!r:.80}",
            "use the lavis_worker.py of this ctxedit",
        )

    def close(self, grace: float) -> None:
        process = self._process
        assert process.stdin is not None
        try:
            if grace:
                process.stdin.write(b'{"type": "shutdown"}\n')
            process.stdin.close()
        except OSError:
            pass  # gone already
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(1.0)
        self._listener.join(1.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while line := stream.readline(_LINE):
                self._lines.put(line)
        self._lines.put(None)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while line := stream.readline(_LINE):
                self._complaints.append(line)

    def _died(self) -> CtxeditError:
        self._listener.join(1.0)  # its last words
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            code = None
        if code == -9:
            return ResourceError(
                "the LAVIS worker was killed", "usually because memory ran out: BLIP-2 needs 16 GB"
            )
        return WeightsError(f"the LAVIS worker ended (exit {code}){self._tail()}", SETUP)

    def _failed(self, message: dict[str, Any]) -> CtxeditError:
        said = " ".join(str(message.get("message", "")).split())[:300]
        if message.get("kind") == "import":
            return WeightsError(f"LAVIS cannot be imported by that interpreter ({said})", SETUP)
        if "out of memory" in said.lower() or said.startswith("MemoryError"):
            return ResourceError(f"LAVIS ran out of memory ({said})", "BLIP-2 needs 16 GB")
        return WeightsError(f"LAVIS failed ({said})", "check the model's names and the space on disk")

    def _tail(self) -> str:
        """The last line of what the worker wrote on stderr."""
        lines = [line.decode(errors="replace").strip() for line in list(self._complaints)]
        said = [line for line in lines if line]
        return f": {said[-1][:200]}" if said else ""


def _message(line: bytes) -> dict[str, Any]:
    """The line's object, or an empty one."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
