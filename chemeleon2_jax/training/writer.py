"""Writers of a run's numbers, pictures and texts: TensorBoard, and Weights & Biases if set."""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from chemeleon2_jax.common import hosts
from chemeleon2_jax.training.config import WandbConfig


class TensorBoardWriter:
    """TensorBoard events, written immediately in this thread.

    tensorboardX's SummaryWriter hands events to a thread through a bounded queue: on a full disk
    that thread dies, and training waits for the queue forever. Here a failed write ends the events
    with a warning, and the run continues.

    Args:
        directory: the run folder.
        first_step: TensorBoard hides events of an earlier part of the run from this step on.
    """

    def __init__(self, directory: Path, *, first_step: int = 0) -> None:
        # Here: only the first process of a run needs it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        # With the step in the name, since two parts of a run may start within the same second.
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

    def text(self, name: str, content: str) -> None:
        """Write a text (Markdown)."""
        from tensorboardX import summary

        self._write(self._event(step=0, summary=summary.text(name, content)))

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
    """Weights & Biases; `WANDB_MODE=offline` and its other variables apply.

    A resumed run continues the same W&B run, which ignores the exact repetitions of steps that are
    trained again.

    Raises:
        ValueError: the package `wandb` is not installed.
    """

    def __init__(self, directory: Path, config: WandbConfig, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "logger.wandb.project is set, but the package wandb is not installed: "
                "`pip install wandb`, or clear logger.wandb.project"
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

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Writers:
    """All destinations of a run as one; processes other than the first have none."""

    def __init__(self, writers: Sequence[TensorBoardWriter | WandbWriter] = ()) -> None:
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

    def close(self) -> None:
        """Write the rest and close."""
        for writer in self._writers:
            writer.close()


def open_writers(
    directory: Path, *, wandb: WandbConfig, first_step: int = 0, config_text: str = ""
) -> Writers:
    """Open the destinations of a run in its folder.

    Args:
        directory: the run folder.
        wandb: Weights & Biases is on when it has a project.
        first_step: first step to write; 0 for a new run.
        config_text: configuration of the run as JSON.

    Raises:
        ValueError: a W&B project is set and wandb is not installed.
    """
    if not hosts.is_first():
        return Writers()
    events = TensorBoardWriter(directory, first_step=first_step)
    if config_text and not first_step:
        events.text("config", f"```json\n{config_text}\n```")
    if not wandb.project:
        return Writers([events])
    return Writers([events, WandbWriter(directory, wandb, json.loads(config_text or "{}"))])
