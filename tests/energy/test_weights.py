"""Nequix's weights: by hand, from a server of our own, and never unverified."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.data.sources import MIRROR_VARIABLE
from chemeleon2_jax.energy import weights
from chemeleon2_jax.energy.weights import MODELS, fetch_weights, read_header, weights_file

MODEL = "nequix-mp-1"
CONTENT = json.dumps({"atomic_numbers": [1, 2], "cutoff": 6.0}).encode() + b"\nweights"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:9")  # nobody listens there


@pytest.fixture
def server(monkeypatch):
    """Serves `files`; `asked` are the paths that were asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            listener.asked.append(self.path)
            content = listener.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    path = f"/atomicarchitects/nequix/{MODELS[MODEL].commit}/models/{MODEL}.nqx"
    listener.files, listener.asked = {path: CONTENT}, []
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    monkeypatch.setenv(MIRROR_VARIABLE, f"http://127.0.0.1:{listener.server_port}")
    yield listener
    listener.shutdown()
    thread.join()
    listener.server_close()


def test_fetched_once(server):
    path = fetch_weights(MODEL)
    assert path.read_bytes() == CONTENT
    assert fetch_weights(MODEL) == path == weights_file(MODEL)
    assert len(server.asked) == 1
    assert read_header(path)["cutoff"] == 6.0


def test_a_file_put_there_by_hand_is_used():
    path = weights_file(MODEL)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch_weights(MODEL) == path
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(EnergyError, match="not the file that came first"):
        fetch_weights(MODEL)


def test_a_file_that_changed_is_fetched_again_once_removed(server):
    path = fetch_weights(MODEL)
    path.unlink()
    assert fetch_weights(MODEL) == path
    server.files[server.asked[0]] = CONTENT + b"other"
    path.unlink()
    with pytest.raises(EnergyError, match="remove the record too"):
        fetch_weights(MODEL)
    path.with_name(path.name + ".sha256").unlink()
    assert fetch_weights(MODEL) == path


def test_what_is_no_model_is_not_recorded(server):
    (name,) = server.files
    server.files[name] = b"<html>"
    with pytest.raises(EnergyError, match="no file of Nequix weights: it begins with b'<html>'"):
        fetch_weights(MODEL)
    assert not list(weights_file(MODEL).parent.glob("*.sha256"))


def test_without_a_network_the_error_says_what_to_do():
    with pytest.raises(EnergyError, match="curl -L --create-dirs -o") as caught:
        fetch_weights(MODEL)
    assert str(weights_file(MODEL)) in str(caught.value)
    assert not weights_file(MODEL).exists()


@pytest.mark.parametrize("limit", [3, None])
def test_a_download_that_fails(server, monkeypatch, limit):
    if limit is None:
        server.files.clear()
    else:
        monkeypatch.setattr(weights, "MAX_BYTES", limit)
    with pytest.raises(EnergyError, match="more than 3 bytes" if limit else "404"):
        fetch_weights(MODEL)
    assert not weights_file(MODEL).exists()


def test_an_unknown_model():
    with pytest.raises(EnergyError, match="did you mean 'nequix-mp-1'"):
        fetch_weights("nequix-mp1")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnergyError, match="set XDG_CACHE_HOME"):
        fetch_weights(MODEL)
