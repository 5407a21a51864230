"""A folder that all processes of a run see."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import HostError

_PATIENCE_S = 10.0  # network file systems show a new file late


def check_shared(folder: Path, *, key: str) -> None:
    """Check that every process sees what the first one writes into a folder.

    Args:
        folder: exists for the first process.
        key: of the folder in the config, for the message.

    Raises:
        HostError: a process sees another folder, or none.
    """
    if hosts.count() == 1:
        return
    token = hosts.from_first(lambda: _leave_token(folder))
    seen = hosts.gather(_sees(folder / token))
    if hosts.is_first():
        (folder / token).unlink(missing_ok=True)
    if not all(seen):
        blind = ", ".join(hosts.describe(i) for i, sees in enumerate(seen) if not sees)
        raise HostError(
            f"{blind} does not see the folder {folder} of {hosts.describe(0)}: set {key} to a "
            "folder on a disk that all hosts share (NFS, Filestore, Lustre)"
        )


def _leave_token(folder: Path) -> str:
    name = f".shared.{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


def _sees(path: Path) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
