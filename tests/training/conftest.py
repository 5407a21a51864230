"""Makes the toy stage importable beside the tests, and keeps its small programs compiled."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

_OPTION = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(scope="module", autouse=True)
def compiled_programs() -> Iterator[None]:
    """Every test compiles the toy stage's step again; take it from the cache."""
    before = getattr(jax.config, _OPTION)
    jax.config.update(_OPTION, 0.0)
    yield
    jax.config.update(_OPTION, before)
