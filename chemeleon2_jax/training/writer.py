"""Where a run's numbers, pictures and texts go: TensorBoard, and Weights & Biases if asked for."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from chemeleon2_jax.training.config import WandbConfig


class Writer(Protocol):
    """What a destination can do."""

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers by name."""
        ...

    def image(self, name: str, pixels: np.ndarray, *, step: int) -> None:
        """Write a picture, (height, width, 3) uint8."""
        ...

    def text(self, name: str, content: str, *, step: int = 0) -> None:
        """Write a text (Markdown)."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoardWriter:
    """TensorBoard events, written at once and in this thread.

    tensorboardX's SummaryWriter hands events to a thread through a bounded queue: on a full disk
    that thread dies, and training then waits for the queue forever. Here a write that fails ends
    the events with a warning, and the run goes on.

    Args:
        directory: the run folder.
        first_step: events of this step and later, from an earlier part of the run, are hidden.
    """

    def __init__(self, directory: Path, *, first_step: int = 0) -> None:
        # Imported here: other processes of a multi-host run, and readers, do not need it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        # The step is in the name: two parts of a run may start within the same second.
        self._events: Any = EventsWriter(str(directory / "events"), f".{first_step}")
        if first_step:
            self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers by name, as one event."""
        from tensorboardX.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(self._event(step=step, summary=Summary(value=entries)))

    def image(self, name: str, pixels: np.ndarray, *, step: int) -> None:
        """Write a picture, (height, width, 3) uint8."""
        from tensorboardX import summary

        self._write(self._event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))

    def text(self, name: str, content: str, *, step: int = 0) -> None:
        """Write a text (Markdown)."""
        from tensorboardX import summary

        self._write(self._event(step=step, summary=summary.text(name, content)))

    def close(self) -> None:
        """Close the event file."""
        self._attempt(lambda events: events.close())
        self._events = None

    def _write(self, event: Any) -> None:
        def write(events: Any) -> None:
            events.write_event(event)
            events.flush()

        event.wall_time = time.time()
        self._attempt(write)

    def _attempt(self, action: Callable[[Any], object]) -> None:
        if self._events is None:
            return
        try:
            action(self._events)
        except OSError as error:
            logging.warning("TensorBoard events end here: %s", error)
            self._events = None


class WandbWriter:
    """Weights & Biases; `WANDB_MODE=offline` and its other variables work as always.

    A resumed run goes on in the same W&B run. Steps that are trained again are exact repetitions,
    which W&B leaves out.

    Raises:
        ValueError: the package `wandb` is not installed.
    """

    def __init__(self, directory: Path, config: WandbConfig, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "logger.wandb.project is set, but the package wandb is not installed: "
                "`pip install wandb`, or leave logger.wandb.project empty"
            ) from error
        id_file = directory / "wandb_run_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(6))
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=config.project,
            name=config.name or directory.name,
            group=config.group or None,
            tags=list(config.tags) or None,
            dir=str(directory),
            id=id_file.read_text().strip(),
            resume="allow",
            config=dict(settings),
            allow_val_change=True,  # a resumed run may have other values
        )

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers by name."""
        self._run.log(dict(values), step=step)

    def image(self, name: str, pixels: np.ndarray, *, step: int) -> None:
        """Write a picture, (height, width, 3) uint8."""
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def text(self, name: str, content: str, *, step: int = 0) -> None:
        """Keep a text in the run's summary."""
        del step
        self._run.summary[name] = content

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Writers:
    """All destinations of a run as one; none in processes other than the first."""

    def __init__(self, writers: Sequence[Writer] = ()) -> None:
        self._writers = list(writers)

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers by name."""
        for writer in self._writers:
            writer.scalars(values, step=step)

    def image(self, name: str, pixels: np.ndarray, *, step: int) -> None:
        """Write a picture, (height, width, 3) uint8."""
        for writer in self._writers:
            writer.image(name, pixels, step=step)

    def text(self, name: str, content: str, *, step: int = 0) -> None:
        """Write a text (Markdown)."""
        for writer in self._writers:
            writer.text(name, content, step=step)

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers:
            writer.close()


def open_writers(
    directory: Path,
    *,
    wandb: WandbConfig,
    first_step: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Writers:
    """Open the destinations of a run in its folder.

    Args:
        directory: the run folder.
        wandb: Weights & Biases is on when it has a project.
        first_step: the first step that will be written (0: a new run).
        settings: JSON-able, the run's configuration, for Weights & Biases.

    Raises:
        ValueError: wandb is asked for and not installed.
    """
    if jax.process_index() != 0:
        return Writers()
    writers: list[Writer] = [TensorBoardWriter(directory, first_step=first_step)]
    if wandb.project:
        writers.append(WandbWriter(directory, wandb, settings or {}))
    return Writers(writers)
