"""Reports of a run: one line on the console, all values in the log file and the events."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.console import ON_CONSOLE
from chemeleon2_jax.training.parallel import describe_devices
from chemeleon2_jax.training.progress import Progress
from chemeleon2_jax.training.report_lines import all_values, step_line, validation_line
from chemeleon2_jax.training.stage import Pictures, Stage
from chemeleon2_jax.training.writer import Writers


class Report:
    """Reports a run of `total_steps` steps (None: no limit) of a stage."""

    def __init__(
        self, stage: Stage, writers: Writers, *, total_steps: int | None, precision: str
    ) -> None:
        self._stage, self._writers, self._total_steps = stage, writers, total_steps
        self._precision, self._created = precision, time.perf_counter()
        self._timed_from = (0, self._created)  # a step and its end
        self._bar: tqdm | None = None

    @contextmanager
    def progress_bar(self, step: int) -> Iterator[None]:
        """Show a bar if stderr is a terminal, in the first process."""
        with tqdm(
            desc=self._stage.name,
            total=self._total_steps,
            initial=step,
            unit="step",
            disable=None if hosts.is_first() else True,  # None: only on a terminal
            dynamic_ncols=True,
        ) as self._bar:
            yield

    def start(self, mesh: Mesh, *, num_crystals: int) -> None:
        """Log devices, precision and batch size."""
        share = f" ({num_crystals / mesh.size:g} a device)" if mesh.size > 1 else ""
        logging.info(
            "%s, %s, %d crystals a step%s",
            *(describe_devices(mesh), self._precision, num_crystals, share),
        )

    def first_step(self, step: int, seconds: float) -> None:
        """Log the duration of the first step, which compiles."""
        now = time.perf_counter()
        logging.info(
            "step %d is done: %.1f s with its compilation, %.1f s since the start of training",
            *(step, seconds, now - self._created),
        )
        self._timed_from = (step, now)

    def step(self, step: int, pictures: Pictures) -> None:
        """Advance the bar by a step, which the device may still compute; write its pictures."""
        if self._bar is not None:
            self._bar.update()
        self._write_pictures(pictures, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Report means over the steps since the last report."""
        epoch = step / self._stage.batches.steps_per_epoch
        scalars = {f"train/{name}": value for name, value in values.items()}
        self._writers.scalars({**scalars, "train/epoch": epoch}, step=step)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
        line = step_line(
            step,
            values,
            total_steps=self._total_steps,
            shown=self._stage.shown,
            seconds_left=self._seconds_left(step),
        )
        logging.info(
            "step %d/%s %s",
            *(step, self._total_steps or "-", all_values(values)),
            extra={ON_CONSOLE: line},
        )

    def validation(
        self, progress: Progress, pictures: Pictures, *, best: Progress | None, seconds: float
    ) -> None:
        """Report a validation; `best` is the best one of the run, this one included."""
        self._write_pictures(pictures, progress.step)
        self._writers.scalars(progress.values, step=progress.step)
        line = validation_line(progress, best=best, shown=self._stage.shown, seconds=seconds)
        logging.info(
            "step %d validation (%.1f s) %s",
            *(progress.step, seconds, all_values(progress.values)),
            extra={ON_CONSOLE: line},
        )

    def _write_pictures(self, pictures: Pictures, step: int) -> None:
        for name, pixels in pictures.items():
            self._writers.image(name, pixels, step=step)

    def _seconds_left(self, step: int) -> float | None:
        first_step, start = self._timed_from
        if self._total_steps is None or step <= first_step:
            return None
        seconds_a_step = (time.perf_counter() - start) / (step - first_step)
        return seconds_a_step * (self._total_steps - step)
