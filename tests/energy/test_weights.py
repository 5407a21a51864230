"""Nequix's weights: by hand, from a server on this machine, and never unverified."""

import json

import pytest

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.fetch import MIRROR_VARIABLE
from chemeleon2_jax.energy import weights
from chemeleon2_jax.energy.weights import MODELS, fetch_weights, read_header, weights_file

MODEL = "nequix-mp-1"
CONTENT = json.dumps({"atomic_numbers": [1, 2], "cutoff": 6.0}).encode() + b"\nweights"
URL = f"/atomicarchitects/nequix/{MODELS[MODEL].commit}/models/{MODEL}.nqx"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:9")  # nobody listens there


def test_fetched_once(file_server):
    file_server.answers[URL] = [CONTENT]
    path = fetch_weights(MODEL)
    assert path.read_bytes() == CONTENT
    assert fetch_weights(MODEL) == path == weights_file(MODEL)
    assert len(file_server.requests) == 1
    assert read_header(path)["cutoff"] == 6.0


@pytest.mark.usefixtures("no_network")
def test_a_file_put_there_by_hand_is_used_and_not_overwritten():
    path = weights_file(MODEL)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch_weights(MODEL) == path
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(EnergyError, match=r"not the file that came first.*Remove the file"):
        fetch_weights(MODEL)
    assert path.read_bytes() == CONTENT + b"!"


def test_a_file_that_changed_is_fetched_again_once_removed(file_server):
    file_server.answers[URL] = [CONTENT]
    path = fetch_weights(MODEL)
    path.unlink()
    assert fetch_weights(MODEL) == path
    file_server.answers[URL] = [CONTENT + b"other"]
    path.unlink()
    with pytest.raises(EnergyError, match="remove the record too"):
        fetch_weights(MODEL)
    path.with_name(path.name + ".sha256").unlink()
    assert fetch_weights(MODEL) == path


def test_what_is_no_model_is_not_recorded(file_server):
    file_server.answers[URL] = [b"<html>"]
    with pytest.raises(EnergyError, match="no file of Nequix weights: it begins with b'<html>'"):
        fetch_weights(MODEL)
    assert not list(weights_file(MODEL).parent.glob("*.sha256"))


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_error_says_what_to_do():
    with pytest.raises(EnergyError, match=r"(?s)no connection.*model_path=") as caught:
        fetch_weights(MODEL)
    assert f"-o {weights_file(MODEL)} http" in str(caught.value)
    assert not weights_file(MODEL).exists()


def test_a_download_that_is_too_large(file_server, monkeypatch):
    file_server.answers[URL] = [CONTENT]
    monkeypatch.setattr(weights, "MAX_BYTES", 3)
    with pytest.raises(EnergyError, match="more than 3 bytes"):
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
