"""SIGTERM, Ctrl-C and preemption: finish the step, save, and say how to resume."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class ValidationInterrupted(BaseException):
    """Raised in a validation by the first signal; the loop then saves and stops."""


class Interrupts:
    """Records SIGTERM and SIGINT while its context is open; a second SIGINT interrupts at once.

    With `jax.distributed`, JAX handles SIGTERM: all hosts agree on the step at which to stop.
    Outside the main thread no signal can be caught.

    Attributes:
        received: the first signal; None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._distributed = jax.distributed.is_initialized()
        self._in_validation = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread() and not self._distributed:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        first = self.received is None
        self.received = signal.Signals(number)
        if first:
            # Not by logging: the signal may interrupt a log line.
            message = (
                f"\n{self.received.name}: saving after this step; Ctrl-C again stops at once\n"
            )
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())
        if self._in_validation:
            raise ValidationInterrupted

    def stop_after(self, step: int) -> bool:
        """Return whether to save and stop after this step; all processes agree."""
        if self._distributed and _reached_preemption(step):
            self.received = signal.SIGTERM
        return self.received is not None

    @contextmanager
    def during_validation(self) -> Iterator[None]:
        """Let the first signal end the block at once, with ValidationInterrupted."""
        self._in_validation = True
        try:
            yield
        finally:
            self._in_validation = False


def _reached_preemption(step: int) -> bool:
    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:  # the preemption service is switched off
        return False
