"""What the tests of the hub share."""

import pytest

from tests.pretrained.hub_server import CONTENT, FILE, Served, serving, use_hub


@pytest.fixture
def server():
    with serving() as server:
        server.files[FILE.repository, FILE.path] = Served(CONTENT)
        yield server


@pytest.fixture
def here(server, monkeypatch, tmp_path):
    """The folder of our caches; huggingface_hub has `server` for the hub, and a cache beside it."""
    use_hub(server, monkeypatch, tmp_path)
    return tmp_path / "chemeleon2_jax"
