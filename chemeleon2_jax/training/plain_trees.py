"""Pytrees as plain nested dicts of arrays, the form of all trees in checkpoints.

Optimiser states and nnx states are library types, which change between versions; nested dicts are
readable without the library.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import GetAttrKey, KeyEntry, keystr, tree_flatten_with_path

PyTree = Any


def _names(path: tuple[KeyEntry, ...]) -> tuple[str, ...]:
    # An nnx variable adds a level of the name `value` above its array.
    if path and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return tuple(keystr((entry,), simple=True) for entry in path) or ("array",)


def to_plain(tree: PyTree) -> dict[str, Any]:
    """Return the tree's leaves in nested dicts, named by their paths.

    Raises:
        ValueError: two leaves have the same path.
    """
    plain: dict[str, Any] = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        *parents, name = _names(path)
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or name in node:
            raise ValueError(f"two leaves of the tree are named {'/'.join([*parents, name])}")
        node[name] = leaf
    return plain


def flat_names(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with names such as 'encoder/kernel'."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            flat.update(flat_names(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat


def overlay(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested dict with the leaves of another, where it has them."""
    return {
        name: overlay(value, other.get(name, {}))
        if isinstance(value, Mapping)
        else other.get(name, value)
        for name, value in tree.items()
    }


def from_plain(plain: dict[str, Any], target: PyTree) -> PyTree:
    """Return the arrays of nested dicts in the structure, and with the dtypes, of `target`.

    Args:
        plain: nested dicts of host arrays, as `to_plain` names them.
        target: pytree of arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: an array is missing, unexpected, or has another shape; up to five are named.
    """
    arrays = flat_names(plain)
    paths, treedef = tree_flatten_with_path(target)
    leaves = {"/".join(_names(path)): leaf for path, leaf in paths}
    problems = [f"{name} is missing" for name in leaves.keys() - arrays.keys()]
    problems += [f"{name} is not in the model" for name in arrays.keys() - leaves.keys()]
    problems += [
        f"{name} has shape {np.shape(arrays[name])}, the model has {np.shape(leaf)}"
        for name, leaf in leaves.items()
        if name in arrays and np.shape(arrays[name]) != np.shape(leaf)
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError("; ".join(sorted(problems)[:5]) + more)
    return jax.tree.unflatten(
        treedef,
        [np.asarray(arrays[name]).astype(leaf.dtype, copy=False) for name, leaf in leaves.items()],
    )
