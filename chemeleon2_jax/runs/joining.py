"""How the processes of a command find each other, on one host or several.

python -m chemeleon2_jax.train ...          # one process; or found by itself: TPU VM, Slurm, ...
python -m chemeleon2_jax.train ... --coordinator=host0:1234 --num_processes=2 --process_id=0
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from absl import flags, logging

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import ConfigError, HostError
from chemeleon2_jax.common.joint_end import ending_together
from chemeleon2_jax.common.version import __version__

flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of the first process, the same on all hosts; TPU VMs, Slurm, Open MPI and "
    "Kubernetes are recognised without it.",
)
flags.DEFINE_integer("num_processes", 0, "Processes in all, with --coordinator.", lower_bound=0)
flags.DEFINE_integer(
    "process_id", -1, "Index of this process, from 0, with --coordinator.", lower_bound=-1
)
flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)

_HEARTBEAT_S = 60
_SHUTDOWN_S = 300
# Of the launchers that JAX recognises, beside a TPU.
_LAUNCHERS = {
    "Slurm": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"),
    "Kubernetes": ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
}


@dataclass(frozen=True)
class _Place:
    """The place of this process among all.

    Attributes:
        coordinator: host:port of the first process.
        num_processes: of all hosts.
        process_id: index of this one.
        local_device_ids: devices of this process; None for all of the host.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, as the flags or the launcher say, and end together with them.

    Must come before the first use of a device. One process needs nothing.

    Raises:
        ConfigError: flags that do not fit together.
        HostError: the others are another version, or another number of processes.
    """
    values = flags.FLAGS
    place = _read_place(values.coordinator, values.num_processes, values.process_id)
    if place is None:
        place = _detect(values.join_timeout)
    if place is not None and place.num_processes > 1:
        _join(place, values.join_timeout)
    with ending_together():
        if hosts.count() > 1:
            _compare(place)
        yield


def _read_place(coordinator: str, num_processes: int, process_id: int) -> _Place | None:
    """Read the flags; None without any."""
    if not coordinator:
        if num_processes > 1 or process_id >= 0:
            raise ConfigError("--num_processes and --process_id need --coordinator=host:port")
        return None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator is {coordinator!r}; it is host:port, as in host0:1234")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--coordinator needs --num_processes and --process_id, from 0 to the number of "
            f"processes - 1; they are {num_processes} and {process_id}"
        )
    return _Place(coordinator, num_processes, process_id)


def _detect(timeout_s: int) -> _Place | None:
    """Ask JAX for the place that a launcher gives; None without a launcher of several processes."""
    launched = any(all(name in os.environ for name in names) for names in _LAUNCHERS.values())
    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    on_tpu = "tpu" in platforms and importlib.util.find_spec("libtpu") is not None
    if not launched and not on_tpu:
        return None
    from jax._src.clusters import ClusterEnv  # JAX has no public name for it

    try:
        values = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, timeout_s
        )
    except Exception as error:  # JAX lists no types
        raise HostError(
            f"the other processes cannot be found: {error}. Name them: --coordinator=host:port "
            "--num_processes=<all> --process_id=<this one>"
        ) from error
    coordinator, num_processes, process_id, devices = values
    if coordinator is None or num_processes is None or process_id is None:
        return None
    local = None if devices is None else list(devices)
    return _Place(coordinator, num_processes, process_id, local)


def _join(place: _Place, timeout_s: int) -> None:
    import jax

    # Before JAX's own limit, at which it ends the process with a stack trace.
    timer = threading.Timer(timeout_s, _give_up, (place, timeout_s))
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout_s + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_S,
        shutdown_timeout_seconds=_SHUTDOWN_S,
    )
    timer.cancel()


def _give_up(place: _Place, timeout_s: int) -> None:
    """End the process: the wait for the others is in C++ and cannot be interrupted."""
    where = f"at {place.coordinator}"
    advice = "Start the same command on every host, each with its own --process_id"
    if place.process_id:
        advice += ", and check that this host reaches that address"
    print(
        f"error: process {place.process_id} waited {timeout_s} s for the {place.num_processes} "
        f"processes to meet {where} (--join_timeout). {advice}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _compare(place: _Place | None) -> None:
    """Introduce the processes to each other."""
    assert place is not None
    deadline = time.monotonic() + flags.FLAGS.join_timeout
    client = hosts.client()
    own = f"{place.num_processes} processes, version {__version__}"
    client.key_value_set(f"{hosts.PREFIX}/name/{place.process_id}", socket.gethostname())
    client.key_value_set(f"{hosts.PREFIX}/hello/{place.process_id}", own)
    for process in range(place.num_processes):
        left_ms = max(1, int(1000 * (deadline - time.monotonic())))
        try:
            other = client.blocking_key_value_get(f"{hosts.PREFIX}/hello/{process}", left_ms)
        except RuntimeError as error:
            raise HostError(f"process {process} did not introduce itself: {error}") from error
        if other != own:
            raise HostError(
                f"process {process} runs with {other}, but process {place.process_id} with {own}"
            )
    if hosts.is_first():
        logging.info("%d processes have met at %s", place.num_processes, place.coordinator)
