"""What every test shares: JAX on the CPU, caches of their own, and the project's shared files."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before anything imports JAX. Child processes of the tests inherit both.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "chemeleon2_jax_test_programs")
)

_REPOSITORY = Path(__file__).resolve().parents[1]
_CACHE_VARIABLE = "XDG_CACHE_HOME"
_OWN_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Gives the session a cache folder, so that no test reads or writes the user's.

    Set before pytest-xdist starts its workers, which inherit it: what one test prepares (the
    embedded crystals, say) is there for all tests of the session.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.stash[_OWN_CACHE] = tempfile.mkdtemp(prefix="chemeleon2_jax_test_cache_")
        os.environ[_CACHE_VARIABLE] = config.stash[_OWN_CACHE]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the session's cache folder."""
    if _OWN_CACHE in config.stash:
        shutil.rmtree(config.stash[_OWN_CACHE], ignore_errors=True)


@pytest.fixture(scope="session")
def repository_dir() -> Path:
    """The checkout."""
    return _REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real crystals and reference values kept beside the checkout."""
    path = _REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder 'shared' with data and reference values beside the checkout")
    return path
