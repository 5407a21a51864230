"""Root keys by purpose.

Training folds the step into `jax.random.key(seed)`. Every other use of a seed has a name, whose key
differs from those of all steps (below 2**31).
"""

from __future__ import annotations

import zlib

import jax
import numpy as np

_NOT_A_STEP = 0x8000_0000


def named_key(seed: int, name: str) -> jax.Array:
    """Return the key of a seed for one purpose: 'init', 'latent_std', 'sizes', 'chain', ..."""
    return jax.random.fold_in(
        jax.random.key(seed), np.uint32(zlib.crc32(name.encode()) | _NOT_A_STEP)
    )
