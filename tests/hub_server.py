"""A Hugging Face hub on 127.0.0.1: the endpoints that ``huggingface_hub`` uses, repositories in memory."""

import hashlib
import json
import re
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files by path. ``lfs``: suffixes of files that the hub keeps as large ones (SHA-256)."""

    files: dict[str, bytes]
    lfs: tuple[str, ...] = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx")
    gated: bool = False
    #: Paths whose served content is not what the listing says.
    spoiled: set[str] = field(default_factory=set)
    #: Bytes that are served beyond what the listing says, by path.
    longer: dict[str, int] = field(default_factory=dict)
    #: Bytes that are missing at the end, by path.
    shorter: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(json.dumps(sorted(self.files)).encode()).hexdigest()

    def is_lfs(self, path: str) -> bool:
        return path.endswith(self.lfs)

    def etag(self, path: str) -> str:
        data = self.files[path]
        if self.is_lfs(path):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def siblings(self):
        return [
            {
                "rfilename": path, "size": len(data), "blobId": self.etag(path)[:40],
                **({"lfs": {"sha256": self.etag(path), "size": len(data), "pointerSize": 134}}
                   if self.is_lfs(path) else {}),
            }
            for path, data in self.files.items()
        ]  # fmt: skip

    def tree(self):
        return [
            {
                "type": "file", "path": path, "size": len(data), "oid": self.etag(path)[:40],
                **({"lfs": {"oid": self.etag(path), "size": len(data), "pointerSize": 134}}
                   if self.is_lfs(path) else {}),
            }
            for path, data in self.files.items()
        ]  # fmt: skip


class Hub:
    """What is served, and what was asked.

    Attributes:
        repositories: by id.
        sent: bytes of file contents that went out, by ``id/path``.
        requests: (method, path) of all requests.
        gate: where there is one, large files are sent once it is set (or after 20 seconds).
        asked_for: set when a large file waits for the gate.
        answers: status and error code instead of a file or listing, by path or id.
        busy: status and ``Retry-After`` that a file is answered with, by path; each answer takes one entry.
        pages: paths and ids that are answered with a web page, as by a proxy, with status 200.
        silent: paths that are not answered until ``woken`` is set; each takes one entry.
        moved: ids that are answered with a redirect to another one.
        cdn: where files are redirected to, as the hub does with large ones; None serves them at once.
        etags: what a mirror calls contents, by path, in place of their hashes.
        tokens: (whether from the CDN, what it says of the caller) of all requests for files' contents.
        ranges: whether a part of a file can be asked for.
        break_after: bytes of a file after which its connection is cut, by path; each cut takes one entry.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.sent: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.break_after: dict[str, list[int]] = {}
        self.answers: dict[str, tuple[int, str]] = {}
        self.busy: dict[str, list[tuple[int, str]]] = {}
        self.pages: set[str] = set()
        self.silent: list[str] = []
        self.woken = threading.Event()
        self.moved: dict[str, str] = {}
        self.cdn: str | None = None
        self.etags: dict[str, str] = {}
        self.tokens: list[tuple[bool, str | None]] = []
        self.ranges = True
        self.gate: threading.Event | None = None
        self.asked_for = threading.Event()
        self.lock = threading.Lock()

    def add(self, hub_id, files, **more):
        self.repositories[hub_id] = Repository(dict(files), **more)
        return self.repositories[hub_id]


_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")


class _Handler(BaseHTTPRequestHandler):
    """Answers for ``hub``, which a subclass names."""

    hub = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(head=True)

    def do_GET(self):
        self._answer(head=False)

    def _answer(self, head):
        path = unquote(urlsplit(self.path).path).removeprefix("/mirror")
        for old, new in self.hub.moved.items():
            if f"/{old}" in path:
                return self._send(307, b"", {"Location": path.replace(f"/{old}", f"/{new}")})
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
        if found := _RESOLVE.fullmatch(path):
            return self._file(found[1], found[3], head)
        if found := _API.fullmatch(path):
            return self._api(found[1], found[2])
        return self._refuse(404, "EntryNotFound")

    def _refuse(self, status, code):
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _api(self, hub_id, kind):
        if hub_id in self.hub.answers:
            return self._refuse(*self.hub.answers[hub_id])
        if hub_id in self.hub.pages:
            return self._send(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        repository = self.hub.repositories.get(hub_id)
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        if kind == "tree":
            table = repository.tree()
        else:
            table = {
                "id": hub_id,
                "modelId": hub_id,
                "sha": repository.commit,
                "siblings": repository.siblings(),
            }
        self._send(200, json.dumps(table).encode(), {"Content-Type": "application/json"})

    def _answered_otherwise(self, path, head):
        """Whether something other than the file was sent: by a busy hub, by a proxy, or nothing at all."""
        if not head and self.hub.busy.get(path):
            status, seconds = self.hub.busy[path].pop(0)
            self._send(status, b"", {"Retry-After": seconds})
        elif path in self.hub.pages:
            self._send(200, b"<html>log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        elif not head and path in self.hub.silent:
            self.hub.silent.remove(path)
            self.hub.woken.wait(20)
            self.close_connection = True
        else:
            return False
        return True

    def _file(self, hub_id, path, head):
        repository = self.hub.repositories.get(hub_id)
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        if repository.gated:
            return self._refuse(401, "GatedRepo")
        if path not in repository.files:
            return self._refuse(404, "EntryNotFound")
        if path in self.hub.answers:
            return self._refuse(*self.hub.answers[path])
        if self._answered_otherwise(path, head):
            return None
        data = repository.files[path]
        headers = {
            "ETag": f'"{repository.etag(path)}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
        }
        if repository.is_lfs(path):
            headers |= {"X-Linked-Etag": f'"{repository.etag(path)}"', "X-Linked-Size": str(len(data))}
        if path in self.hub.etags:
            headers = {"ETag": self.hub.etags[path], "X-Repo-Commit": repository.commit}
        from_cdn = self.headers.get("Host", "").startswith("localhost")
        if not head:
            self.hub.tokens.append((from_cdn, self.headers.get("Authorization")))
        if self.hub.cdn and repository.is_lfs(path) and not from_cdn:
            return self._send(302, b"", headers | {"Location": f"{self.hub.cdn}{self.path}"})
        status, start = 200, 0
        if (asked := self.headers.get("Range")) and self.hub.ranges and not head:
            status, start = 206, int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start : len(data) - repository.shorter.get(path, 0)]
        if start and not body:
            return self._refuse(416, "RangeNotSatisfiable")
        if path in repository.spoiled:
            body = bytes(len(body))
        body += bytes(repository.longer.get(path, 0))
        if head:
            return self._send(status, data, headers)
        if self.hub.gate is not None and repository.is_lfs(path):
            self.hub.asked_for.set()
            self.hub.gate.wait(20)
        with self.hub.lock:
            cuts = self.hub.break_after.get(path, [])
            cut = cuts.pop(0) if cuts else None
            going = body if cut is None else body[:cut]
            self.hub.sent[f"{hub_id}/{path}"] = self.hub.sent.get(f"{hub_id}/{path}", 0) + len(going)
        if cut is None:
            return self._send(status, body, headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(going)
        self.wfile.flush()
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    """Silent about clients that go away, as those do whose download is stopped on purpose."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(hub):
    return type("Handler", (_Handler,), {"hub": hub})


@contextmanager
def serving():
    """A hub and its address, for as long as the block lasts."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def files_of(folder, prefix=""):
    """A folder's files by path."""
    return {
        prefix + f.relative_to(folder).as_posix(): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }
