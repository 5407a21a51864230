"""What every test shares: JAX on the CPU, caches of their own, and the project's shared files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports JAX. Child processes of the tests inherit both.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test asks the real hub, also where there is a network.
os.environ["HF_HUB_OFFLINE"] = "1"
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


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A `tests.common.file_server.FileServer` as the mirror of GitHub, and an empty cache."""
    from tests.common.file_server import serving_files

    with serving_files() as server:
        monkeypatch.setenv("CHEMELEON2_JAX_DATA_URL", server.url + "/")
        monkeypatch.setenv(_CACHE_VARIABLE, str(tmp_path))
        yield server


# --- a tiny VAE and a tiny LDM, trained once for all tests of the session -------------------------

# Of tests and of their child processes: the same small programs are compiled again and again.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For programs that run a few steps: to compile them well would take most of the time."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (one row is broken), val.csv and test.csv."""
    from tests import tiny

    return tiny.make_once(tmp_path_factory.getbasetemp(), "tiny_data", tiny.write_folder)


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Any:
    """`tests.tiny.Run` of a VAE trained by the command line."""
    from tests import tiny

    base = tmp_path_factory.getbasetemp()
    return tiny.Run.of(tiny.make_once(base, "tiny_vae", lambda f: tiny.train_vae(f, tiny_data)))


@pytest.fixture(scope="session")
def tiny_ldm(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_vae: Any) -> Any:
    """`tests.tiny.Run` of an LDM trained by the command line; its VAE's own run is gone."""
    from tests import tiny

    def train(folder: Path) -> None:
        tiny.train_ldm(folder, tiny_data, tiny_vae.path)

    return tiny.Run.of(tiny.make_once(tmp_path_factory.getbasetemp(), "tiny_ldm", train))


@pytest.fixture(scope="session")
def tiny_samples(tmp_path_factory: pytest.TempPathFactory, tiny_ldm: Any) -> Path:
    """What the sample command writes for `tests.tiny.SAMPLE_FLAGS`, and its output.txt."""
    from tests import tiny

    def sample(folder: Path) -> None:
        tiny.sample(folder, tiny_ldm.path)

    return tiny.make_once(tmp_path_factory.getbasetemp(), "tiny_samples", sample)


@pytest.fixture(scope="session")
def csp_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """Run folder of a VAE with a CSPNet encoder that is given the atom types; hardly trained."""
    from tests import tiny

    given = {"atom_type_predict": False, "encoder.name": "cspnet", "loss_weights.atom_types": 0.0}

    def train(folder: Path) -> None:
        tiny.fit_quickly(tiny.vae_config(tiny_data, vae_module=given), folder, steps=30)

    return tiny.make_once(tmp_path_factory.getbasetemp(), "csp_run", train)


@pytest.fixture(scope="session")
def four_devices(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_vae: Any, tiny_ldm: Any
) -> Path:
    """A folder with what `tests/stages/four_devices.py` computed on 1 and on 4 devices."""
    from tests import tiny

    def compute(folder: Path) -> None:
        script = _REPOSITORY / "tests" / "stages" / "four_devices.py"
        done = tiny.run_script(
            script,
            *(str(path) for path in (folder, tiny_data, tiny_vae.path, tiny_ldm.path)),
            XLA_FLAGS="--xla_force_host_platform_device_count=4",
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        )
        assert done.code == 0, done.output

    return tiny.make_once(tmp_path_factory.getbasetemp(), "four_devices", compute)
