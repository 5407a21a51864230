"""Cache files are whole or absent, and a cache that cannot be written costs time only."""

import os

import numpy as np
import pytest
from absl import logging as absl_logging

from chemeleon2_jax.data.cache import load_arrays, store_arrays

ARRAYS = {"a": np.arange(1000), "b": np.array([b"x", b"yz"])}


def test_round_trip(tmp_path) -> None:
    path = tmp_path / "new" / "x.npz"
    assert load_arrays(path) is None
    assert store_arrays(path, ARRAYS)
    loaded = load_arrays(path)
    assert loaded is not None
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_damage_is_noticed(tmp_path, caplog, damage) -> None:
    path = tmp_path / "x.npz"
    store_arrays(path, ARRAYS)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    damaged = {"cut": content[:-500], "flip": content, "empty": b"", "text": b"hello, world"}
    path.write_bytes(damaged[damage])
    with caplog.at_level("WARNING", absl_logging.get_absl_logger().name):
        assert load_arrays(path) is None
    assert "unreadable" in caplog.text


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level("WARNING", absl_logging.get_absl_logger().name):
        assert not store_arrays(tmp_path / "file" / "x.npz", ARRAYS)
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    def fill(stream, **arrays) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    assert not store_arrays(tmp_path / "x.npz", ARRAYS)
    assert not list(tmp_path.iterdir())


def test_cache_files_get_the_usual_permissions(tmp_path) -> None:
    old = os.umask(0o022)
    try:
        store_arrays(tmp_path / "x.npz", ARRAYS)
    finally:
        os.umask(old)
    assert (tmp_path / "x.npz").stat().st_mode & 0o777 == 0o644
