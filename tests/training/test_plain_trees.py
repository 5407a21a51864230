from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from chemeleon2_jax.training.plain_trees import flat_names, from_plain, to_plain


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])


def test_nnx_states_and_optimizer_states_become_plain_names_and_come_back() -> None:
    params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)[1]
    tree = {"params": params, "opt": optax.adam(1e-3).init(params)}
    plain = jax.device_get(to_plain(tree))
    names = flat_names(plain)
    assert "params/layers/0/kernel" in names
    assert "opt/0/mu/layers/1/bias" in names
    assert all(type(node) is dict for node in (plain, plain["params"], plain["opt"]["0"]))
    back = from_plain(plain, jax.eval_shape(lambda: tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for array, original in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(array, original)


def test_single_array() -> None:
    assert from_plain(to_plain(np.float32(2.0)), jnp.float32(0)) == 2.0


def test_target_gives_the_dtype() -> None:
    back = from_plain({"a": np.ones(2, np.float32)}, {"a": jax.ShapeDtypeStruct((2,), "bfloat16")})
    assert back["a"].dtype == jnp.bfloat16


def test_all_that_does_not_fit_is_named() -> None:
    plain = {"a": {"b": np.ones(2)}, "old": np.ones(1)}
    target = {"a": {"b": np.ones(3)}, "new": np.ones(1)}
    with pytest.raises(ValueError, match="new is missing") as caught:
        from_plain(plain, target)
    assert "a/b has shape (2,), the model has (3,)" in str(caught.value)
    assert "old is not in the model" in str(caught.value)


class Pair(NamedTuple):
    value: np.ndarray
    other: np.ndarray


def test_ambiguous_names_are_an_error() -> None:
    # A last field named `value` is taken for nnx's wrapper.
    with pytest.raises(ValueError, match="named pair/other"):
        to_plain({"pair": Pair(np.ones(1), np.ones(1))})
