"""Fixtures of the tests of the hub."""

import pytest

from tests.pretrained.hub_server import CONTENT, FILE, Served, serving, use_hub


@pytest.fixture
def server():
    with serving() as server:
        server.files[FILE.repository, FILE.path] = Served(CONTENT)
        yield server


@pytest.fixture
def cache(server, monkeypatch, tmp_path):
    """The package's cache folder; huggingface_hub talks to `server` and has a cache beside it."""
    use_hub(server, monkeypatch, tmp_path)
    return tmp_path / "chemeleon2_jax"


@pytest.fixture
def served(server, cache):
    """The server's file of KEY, for a test to change."""
    return server.files[FILE.repository, FILE.path]
