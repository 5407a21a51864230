"""Where the cache is, and checksums of files."""

from chemeleon2_jax.common.cache import cache_dir, hash_file


def test_place(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "chemeleon2_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_dir()) == "/home/someone/.cache/chemeleon2_jax"


def test_hash_is_that_of_git(tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    # The output of `git hash-object` for a file with that line.
    assert (
        hash_file(tmp_path / "x", "sha1", prefix=b"blob 6\0")
        == "ce013625030ba8dba906f756967f9e9ca394464a"
    )
