"""The device mesh: data parallel over one axis, on one host or many.

The first axis of every batch array is sharded, parameters are replicated.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon2_jax.common import hosts

DATA_AXIS = "data"
PyTree = Any


def make_mesh(num_devices: int = 0) -> Mesh:
    """Return the mesh of all devices of all hosts, or of the first `num_devices`.

    Raises:
        ValueError: there are fewer devices, or there are several hosts and `num_devices` is not the
            number of all devices.
    """
    devices = jax.devices()
    if num_devices:
        if hosts.count() > 1 and num_devices != len(devices):
            raise ValueError("num_devices chooses among the devices of one host; use 0 on several")
        if num_devices > len(devices):
            raise ValueError(f"num_devices is {num_devices}, but jax sees {len(devices)} devices")
        devices = devices[:num_devices]
    return _mesh_of(devices)


def make_local_mesh() -> Mesh:
    """Return the mesh of the devices of this process."""
    return _mesh_of(jax.local_devices())


def _mesh_of(devices: list[jax.Device]) -> Mesh:
    # Auto: with explicit axes, every gather and segment sum needs a sharding as an argument.
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def describe_devices(mesh: Mesh) -> str:
    """Return number and kind of the devices, e.g. '1 x cpu (8 cores)'."""
    device = mesh.devices.flat[0]
    text = f"{mesh.size} x {device.device_kind}"
    if device.platform == "cpu":
        text += f" ({os.cpu_count()} cores)"
    return f"{text} on {hosts.count()} hosts" if mesh.is_multi_process else text


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with a whole copy on every device."""
    return NamedSharding(mesh, P())


def sharding_of(array: Any, mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch array: first axis over the devices, scalars on all."""
    return NamedSharding(mesh, P(DATA_AXIS) if np.ndim(array) else P())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every array on every device; all processes must have the same values."""
    sharding = replicated(mesh)
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)
    # device_put would compare the values between the hosts, one message an array.
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), np.shape(x)), tree
    )


def rows_here(mesh: Mesh, num_rows: int) -> tuple[int, int]:
    """Return first and last + 1 of the rows of a batch that are on devices of this process."""
    return hosts.share(num_rows) if mesh.is_multi_process else (0, num_rows)


def shard_batch(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Make global arrays, sharded on the first axis, from this process's rows.

    Raises:
        ValueError: the rows cannot be divided among this process's devices.
    """
    num_local = len(mesh.local_devices)
    for array in jax.tree.leaves(arrays):
        if np.ndim(array) and np.shape(array)[0] % num_local:
            raise ValueError(
                f"a batch array of shape {np.shape(array)} cannot be divided among {num_local} "
                "devices: the number of rows must be a multiple of the number of devices"
            )
    shardings = jax.tree.map(lambda array: sharding_of(array, mesh), arrays)
    if not mesh.is_multi_process:
        return jax.device_put(arrays, shardings)  # one call takes half the time on the host
    return jax.tree.map(
        lambda array, sharding: jax.make_array_from_process_local_data(sharding, np.asarray(array)),
        arrays,
        shardings,
    )
