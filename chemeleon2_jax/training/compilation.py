"""JAX's persistent compilation cache: the second launch of a program does not compile it again."""

import os
from pathlib import Path
from typing import Any

import jax

from chemeleon2_jax.common.cache import cache_dir

_MIN_COMPILE_SECONDS = 0.5


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs under `$XDG_CACHE_HOME/chemeleon2_jax/xla`.

    The user's own setting wins: another folder (`JAX_COMPILATION_CACHE_DIR`) or none
    (`JAX_ENABLE_COMPILATION_CACHE=0`).

    Returns:
        The folder in use; None where it is switched off or cannot be written.
    """
    if not _setting("jax_enable_compilation_cache"):
        return None
    configured = _setting("jax_compilation_cache_dir")
    if configured:
        return Path(configured)
    directory = cache_dir() / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return directory


def _setting(name: str) -> Any:
    # By name: type checkers do not know the attributes.
    return getattr(jax.config, name)
