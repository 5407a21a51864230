"""The processes of one run, on one host or several: who is who, and what they tell each other.

All other code asks here, not JAX. Values travel through the coordination service of
`jax.distributed`, not through the devices: nothing is compiled, and a process may wait for hours.
Every process must call these functions in the same order.
"""

from __future__ import annotations

import itertools
import pickle
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from chemeleon2_jax.common.errors import HostError

T = TypeVar("T")

PREFIX = "chemeleon2_jax"
"""Of all keys in the coordination service."""

_LONG_MS = 7 * 24 * 3600 * 1000
_POLL_MS = 1000  # a wait in C++ holds back Ctrl-C
_calls = itertools.count()
_old_keys: list[str] = []


def _state() -> Any:
    """The state of `jax.distributed`; None before JAX is imported, which takes seconds."""
    module = sys.modules.get("jax._src.distributed")
    return None if module is None else module.global_state


def client() -> Any:
    """Return the client of the coordination service; there are several processes."""
    return _state().client


def count() -> int:
    """Return the number of processes."""
    state = _state()
    return 1 if state is None or state.client is None else int(state.num_processes)


def index() -> int:
    """Return the index of this process."""
    return 0 if count() == 1 else int(_state().process_id)


def is_first() -> bool:
    """Return whether this process decides and writes what there is once."""
    return index() == 0


def describe(process: int | None = None) -> str:
    """Return 'process 1 on <host name>', by default of this process."""
    process = index() if process is None else process
    name = socket.gethostname()
    if process != index():
        try:
            name = client().key_value_try_get(f"{PREFIX}/name/{process}")
        except RuntimeError:  # it did not give its name
            return f"process {process}"
    return f"process {process} on {name}"


def share(total: int) -> tuple[int, int]:
    """Return first and last + 1 of this process's share of `total` things: equal shares, in the
    order of the processes.
    """
    return total * index() // count(), total * (index() + 1) // count()


def wait_for_all() -> None:
    """Wait until every process calls this."""
    if count() == 1:
        return
    client().wait_at_barrier(f"{PREFIX}/{next(_calls)}", _LONG_MS)
    # Every process has read what was told before this wait.
    if is_first():
        for key in _old_keys:
            client().key_value_delete(key)
        _old_keys.clear()


def from_first(compute: Callable[[], T]) -> T:
    """Return what `compute` returns in the first process; the others do not call it."""
    if count() == 1:
        return compute()
    key = f"{PREFIX}/{next(_calls)}"
    if is_first():
        value = compute()
        client().key_value_set_bytes(key, pickle.dumps(value))
        _old_keys.append(key)
        return value
    # The peers of a run trust each other: they run the same program for the same user.
    received: T = pickle.loads(_wait_for(key))
    return received


def _wait_for(key: str) -> bytes:
    while True:
        try:
            return bytes(client().blocking_key_value_get_bytes(key, _POLL_MS))
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def gather_to_first(value: T) -> list[T]:
    """Return the values of all processes, in their order, in the first process; [] in others."""
    if count() == 1:
        return [value]
    folder = f"{PREFIX}/{next(_calls)}"
    client().key_value_set_bytes(f"{folder}/{index()}", pickle.dumps(value))
    wait_for_all()
    if not is_first():
        return []
    keys = [f"{folder}/{process}" for process in range(count())]
    values = [pickle.loads(_wait_for(key)) for key in keys]
    _old_keys.extend(keys)
    return values


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    values = gather_to_first(value)
    return from_first(lambda: values)


def check_same(values: Mapping[str, object]) -> None:
    """Check that all processes have the same values.

    Args:
        values: by a name that the message names; they have a text.

    Raises:
        HostError: in every process, if a value differs from that of the first process.
    """
    for process, others in enumerate(every := gather({k: str(v) for k, v in values.items()})):
        for name, text in every[0].items():
            if others.get(name) != text:
                raise HostError(
                    f"the hosts do not have the same {name}: it is {text} in {describe(0)}, and "
                    f"{others.get(name)} in {describe(process)}"
                )
