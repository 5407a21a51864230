"""Metrics of training steps: kept on the device, fetched together, checked and averaged."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from chemeleon2_jax.common.errors import NonFiniteError
from chemeleon2_jax.rows.batch import Batch

# Number of steps that the host may be ahead of the device: enough to keep it busy, few enough for
# a progress bar that is right and for a Ctrl-C that does not wait for a long queue.
_STEPS_AHEAD = 2


class StepMetrics:
    """Metrics and rates of the steps since the last log line."""

    def __init__(self) -> None:
        self._on_device: list[tuple[int, Mapping[str, Any]]] = []
        self._window: list[dict[str, float]] = []
        self.restart_clock()

    def add(self, step: int, metrics: Mapping[str, Any], batch: Batch) -> None:
        """Keep the metrics of a step; wait only if the device is more than two steps behind."""
        self._on_device.append((step, metrics))
        self._crystals += batch.num_crystals
        self._useful += batch.useful_tokens
        self._steps += 1
        if len(self._on_device) > _STEPS_AHEAD:
            jax.block_until_ready(self._on_device[-1 - _STEPS_AHEAD][1])

    def fetch(self) -> None:
        """Copy all metrics to the host.

        Raises:
            NonFiniteError: for the first step whose loss or gradient norm is not finite.
        """
        steps = [step for step, _ in self._on_device]
        fetched = jax.device_get([metrics for _, metrics in self._on_device])
        self._on_device.clear()
        for step, metrics in zip(steps, fetched, strict=True):
            if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"]):
                raise NonFiniteError(step, [k for k, v in metrics.items() if not np.isfinite(v)])
            self._window.append({name: float(value) for name, value in metrics.items()})

    def read(self) -> dict[str, float]:
        """Fetch; return means since the last reading, the last `lr`, and rates without pauses.

        At least one step must have been added since the last reading.

        Raises:
            NonFiniteError: see `fetch`.
        """
        self.fetch()
        names = dict.fromkeys(["loss", *(name for m in self._window for name in m)])
        # A metric that a step lacks is a count of 0.
        values = {name: float(np.mean([m.get(name, 0.0) for m in self._window])) for name in names}
        values["lr"] = self._window[-1]["lr"]
        if self._steps:
            seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
            values["crystals_per_second"] = self._crystals / seconds
            values["useful_token_share"] = self._useful / self._steps
        self._window.clear()
        self.restart_clock()
        return values

    def pause(self, seconds: float) -> None:
        """Exclude time from the rates."""
        self._paused += seconds

    def restart_clock(self) -> None:
        """Restart the measurement of rates."""
        self._start, self._paused = time.perf_counter(), 0.0
        self._crystals, self._useful, self._steps = 0, 0.0, 0
