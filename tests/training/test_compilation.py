import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from chemeleon2_jax.training.compilation import enable_compilation_cache

CODE = """
import jax
from chemeleon2_jax.training.compilation import enable_compilation_cache
print(enable_compilation_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""
OPTIONS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def test_programs_are_kept_silently(tmp_path: Path) -> None:
    folder = tmp_path / "chemeleon2_jax" / "xla"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", CODE],
            env=inherited | {"XDG_CACHE_HOME": str(tmp_path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout.strip() == str(folder)
        assert process.stderr == ""
    assert list(folder.iterdir())


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for caches, in a process that has no compilation cache so far."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_users_own_setting_wins(cache_home: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", "own")
    assert enable_compilation_cache() == Path("own")
    jax.config.update("jax_enable_compilation_cache", False)
    assert enable_compilation_cache() is None
    assert list(cache_home.iterdir()) == []


def test_folder_that_cannot_be_made_is_no_error(cache_home: Path) -> None:
    (cache_home / "chemeleon2_jax").write_text("a file")
    assert enable_compilation_cache() is None
    (cache_home / "chemeleon2_jax").unlink()
    assert enable_compilation_cache() == cache_home / "chemeleon2_jax" / "xla"
