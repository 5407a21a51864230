"""One process ends, all end: its error is told to the others, which would wait for it forever."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from absl import logging

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import HostError, UserError

_END = f"{hosts.PREFIX}/end"
_ALIVE = f"{hosts.PREFIX}/alive"
_POLL_S = 1.0
_SILENT_S = 25.0
"""A process that gives no sign of life for this long is gone."""


@contextmanager
def ending_together() -> Iterator[None]:
    """Tell the others of an error in the block, and end this process when one of them has ended.

    With one process, does nothing.

    Raises:
        HostError: in place of an error in the talk with a process that has ended.
    """
    if hosts.count() == 1:
        yield
        return
    watch = _Watch()
    watch.start()
    try:
        yield
    except BaseException as error:
        end = watch.fail(error)
        if end is not None and _may_follow_from_another(error):
            raise HostError(end) from None
        raise
    else:
        watch.stop()


class _Watch:
    """A thread that gives signs of life and looks for those, and for the end, of the others."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._failed = False
        self._seen: dict[str, tuple[str, float]] = {}  # process -> its last sign, and when
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; this process may still end itself, in peace."""
        self._stopped.set()
        self._thread.join()

    def fail(self, error: BaseException) -> str | None:
        """Tell the others why this process ends; return why another has ended before it."""
        self._failed = True
        end = self._end_of_another()
        if end is None and _may_follow_from_another(error):
            # A process was killed: the talk with it fails before its silence is noticed.
            end = self._find_dead()
        self.stop()
        if end is None:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._tell(f"{hosts.describe()} ended with {reason}")
        atexit.register(self._leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
        return end

    def _tell(self, text: str) -> None:
        with suppress(RuntimeError):  # another has told of its end, or the service is gone
            hosts.client().key_value_set(_END, text)

    def _end_of_another(self) -> str | None:
        try:
            return str(hosts.client().key_value_try_get(_END))
        except RuntimeError:  # there is none
            return None

    def _find_dead(self) -> str | None:
        before = self._signs()
        for _ in range(5):
            time.sleep(_POLL_S)
            end = self._end_of_another()
            if end is not None:
                return end
        after = self._signs()
        dead = [p for p in range(hosts.count()) if before.get(str(p)) == after.get(str(p))]
        return _describe_dead(dead) if dead else None

    def _signs(self) -> dict[str, str]:
        with suppress(RuntimeError):
            entries = hosts.client().key_value_dir_get(_ALIVE)
            return {key.rpartition("/")[2]: value for key, value in entries}
        return {"0": ""}  # the first process holds the service

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(_POLL_S):
            number += 1
            with suppress(RuntimeError):
                hosts.client().key_value_set(
                    f"{_ALIVE}/{hosts.index()}", str(number), allow_overwrite=True
                )
            if hosts.is_first():
                self._look_for_silent()
            end = self._end_of_another()
            if end is not None:
                self._end_with(end)

    def _look_for_silent(self) -> None:
        now = time.monotonic()
        for process, sign in self._signs().items():
            if self._seen.get(process, ("", 0.0))[0] != sign:
                self._seen[process] = (sign, now)
        silent = [int(p) for p, (_, since) in self._seen.items() if now - since > _SILENT_S]
        if silent:
            self._tell(_describe_dead(silent))

    def _end_with(self, end: str) -> None:
        """End this process, unless it is ending by itself: the same error may reach all."""
        time.sleep(2 * _POLL_S)
        if self._failed:
            self._stopped.set()
            return
        logging.error("%s; this process ends too", end)
        self._leave(1)

    def _leave(self, code: int) -> None:
        """End at once: the shutdown of `jax.distributed` would wait for the others."""
        sys.stdout.flush()
        sys.stderr.flush()
        if hosts.is_first():
            time.sleep(4 * _POLL_S)  # the service, which the others read the end from, ends with it
        os._exit(code)


def _may_follow_from_another(error: BaseException) -> bool:
    """Return whether an error may come from the talk with another process, as in a save."""
    if isinstance(error, UserError):
        return error.__cause__ is not None and not isinstance(error.__cause__, UserError | OSError)
    return isinstance(error, Exception)


def _describe_dead(processes: list[int]) -> str:
    names = ", ".join(hosts.describe(process) for process in processes)
    return (
        f"{names} gave no sign of life: killed, or out of reach. Start the command on all hosts "
        "again with --config.resume_from=<run folder>"
    )
