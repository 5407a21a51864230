"""Models without values: graph definitions and shapes of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def abstract_module(module: Any, sizes: Any, *, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Return the graph definition of `module(sizes)` and the shapes of its parameters; nothing is
    computed.
    """
    return nnx.split(
        nnx.eval_shape(lambda: module(sizes, rngs=nnx.Rngs(0), dtype=dtype)), nnx.Param
    )


def count_parameters(params: Any) -> int:
    """Number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
