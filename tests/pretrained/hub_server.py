"""A hub on this machine, with huggingface_hub's protocol and faults on demand."""

import hashlib
import json
import re
import threading
import time
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.pretrained import hub
from chemeleon2_jax.pretrained.hub import REGISTRY

COMMIT = "c0ffee0123456789c0ffee0123456789c0ffee01"
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Served:
    """A file of the server, and its faults.

    Attributes:
        content: of the file; its size and ETag are announced.
        bodies: sent instead of the content, one for each download; the last is repeated.
        etag: announced instead of the sha256 of the content.
        length: Content-Length of the answer with the body, instead of that of the body.
        hang_up_after: bytes after which the connection closes, one for each download; later
            downloads are whole.
        status, error_code: answer with an error instead.
        token: required in a request.
        answer_delay, block_delay: seconds to wait before an answer, and before each 64 kB.
        redirect: send the body from another host name, as the hub for large files.
        commit_header: name the commit in the answers.
    """

    content: bytes
    bodies: list[bytes] = field(default_factory=list)
    etag: str = ""
    length: int | None = None
    hang_up_after: list[int] = field(default_factory=list)
    status: int = 200
    error_code: str = ""
    token: str = ""
    answer_delay: float = 0.0
    block_delay: float = 0.0
    redirect: bool = False
    commit_header: bool = True

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Serves `files`, by (repository, path), at the revisions of `commits` and at their commits."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], Served] = {}
        self.commits = {"main": COMMIT}
        self.requests: list[str] = []
        """"HEAD /path" or "GET /path" of each request, without redirected ones."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def num_downloads(self) -> int:
        return sum(request.startswith("GET") for request in self.requests)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up."""


@contextmanager
def serving():
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        from_cdn = self.path.startswith("/cdn")
        path = self.path.removeprefix("/cdn")
        match = _RESOLVE.fullmatch(path)
        if match and not from_cdn:
            self.server.requests.append(f"{self.command} {path}")
        repository, revision, name = match.groups() if match else ("", "", "")
        if repository not in {known for known, _ in self.server.files}:
            self._refuse(404, "RepoNotFound")
        elif revision not in {*self.server.commits, *self.server.commits.values()}:
            self._refuse(404, "RevisionNotFound")
        elif (repository, name) not in self.server.files:
            self._refuse(404, "EntryNotFound")
        else:
            served = self.server.files[repository, name]
            commit = self.server.commits.get(revision, revision)
            self._serve(served, commit, from_cdn=from_cdn, with_body=with_body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, served: Served, commit: str, *, from_cdn: bool, with_body: bool) -> None:
        time.sleep(served.answer_delay)
        if served.status != 200:
            self._refuse(served.status, served.error_code)
        elif served.token and self.headers.get("Authorization") != f"Bearer {served.token}":
            self._refuse(401, "")
        elif served.redirect and not from_cdn:
            self.send_response(302)
            self._announce(served, commit)
            self.send_header("X-Linked-Etag", f'"{served.etag or served.sha256}"')
            self.send_header("X-Linked-Size", str(len(served.content)))
            self.send_header("Content-Length", "0")
            host = f"http://localhost:{self.server.server_port}"
            self.send_header("Location", f"{host}/cdn{self.path}")
            self.end_headers()
        elif with_body:
            self._send(served, commit)
        else:
            self.send_response(200)
            self._announce(served, commit)
            self.send_header("Content-Length", str(len(served.content)))
            self.end_headers()

    def _announce(self, served: Served, commit: str) -> None:
        if served.commit_header:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{served.etag or served.sha256}"')

    def _send(self, served: Served, commit: str) -> None:
        bodies = served.bodies or [served.content]
        wanted = self.headers.get("Range")
        # A resumed download gets the rest of the same body.
        body = bodies.pop(0) if len(bodies) > 1 and not wanted else bodies[0]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        stop = served.hang_up_after.pop(0) if served.hang_up_after else len(body)
        self.send_response(206 if wanted else 200)
        self._announce(served, commit)
        length = len(body) if served.length is None else served.length
        self.send_header("Content-Length", str(length - start))
        self.end_headers()
        for first in range(start, stop, 1 << 16):
            time.sleep(served.block_delay)
            self.wfile.write(body[first : min(first + (1 << 16), stop)])


KEY = "mp_20_vae"
FILE = REGISTRY[KEY]
CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]
SHA256, OTHER_SHA256 = (hashlib.sha256(content).hexdigest() for content in (CONTENT, OTHER))
NEW_COMMIT = "beef" * 10


def use_hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point huggingface_hub to `server`, and all caches into `folder`; it retries at once."""
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_ETAG_TIMEOUT": 5,
        "HF_HUB_DOWNLOAD_TIMEOUT": 5,
    }.items():
        monkeypatch.setattr(constants, name, value)
    at_once = types.SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr(file_download, "time", at_once)
    monkeypatch.setattr(_http, "time", at_once)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def drop(here: Path, content: bytes, path: str = FILE.path) -> Path:
    """Put a file in the place of one fetched by hand."""
    target = here / "hub" / "files" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def record_of(here: Path) -> dict:
    return json.loads((here / "hub" / "recorded.json").read_text())[KEY]


def forget_download(here: Path) -> None:
    """Empty huggingface_hub's cache."""
    (here.parent / "huggingface").rename(here.parent / f"other_{len(list(here.parent.iterdir()))}")


def fetch_fails(*fragments: str, key: str = KEY) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(key)
    for fragment in fragments:
        assert fragment in str(caught.value)
    return str(caught.value)


def copy_weights(source: Path, folder: Path) -> None:
    (folder / "weights").write_bytes(source.read_bytes())


def convert_nothing(source: Path, folder: Path) -> None:
    raise AssertionError("there is nothing to convert")
