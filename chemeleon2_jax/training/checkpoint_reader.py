"""Reading checkpoints: those of a run (`checkpoints/step_<n>`, `last`, `best`) and single folders.

The items of a checkpoint are the stage's trees (`params`, `ema`, ...), `train` (optimiser, step,
key), `meta` (JSON: a description of the model), `progress` (JSON: `Progress`) and `checksums`
(JSON: item -> array -> checksum, and the meta's own). `checkpoint_writer` writes them.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.json_text import parse_json
from chemeleon2_jax.common.paths import expand_path, utf8_path
from chemeleon2_jax.training.checksums import checksum_json, first_difference
from chemeleon2_jax.training.plain_trees import from_plain
from chemeleon2_jax.training.progress import Progress, best_of

PyTree = Any
Meta = TypeVar("Meta")

DIRECTORY = "checkpoints"
LAST, BEST = "last", "best"
META, PROGRESS, CHECKSUMS = "meta", "progress", "checksums"
_STEP_NAME = re.compile(r"step_(\d+)")
# Orbax logs what its threads raise, and raises it to the caller too.
_LATE_ERRORS = (
    "exception was never retrieved",
    "Task was destroyed",
    "_SignalingThread.run() raised",
)
_JSON_FILE = "metadata"  # Orbax's name of the file of a JSON item


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keep Orbax's log lines (dozens for each save) out of the run's log."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@dataclass(frozen=True)
class Checkpoint(Generic[Meta]):
    """A complete checkpoint on disk.

    Attributes:
        path: its folder.
        meta: description of the model: the JSON item, or what a caller has read from it.
        progress: of the run that wrote it; that of step 0 for a checkpoint outside of a run.
        verify: compare the arrays that are read with the checkpoint's checksums.
    """

    path: Path
    meta: Meta
    progress: Progress
    verify: bool = True

    @property
    def step(self) -> int:
        """Steps trained; 0 for a checkpoint outside of a run."""
        return self.progress.step

    @property
    def items(self) -> tuple[str, ...]:
        """Names of the trees that can be restored."""
        return tuple(sorted(p.parent.name for p in self.path.glob("*/_METADATA")))

    def restore(self, name: str, target: PyTree | None = None) -> PyTree:
        """Read one item as numpy arrays.

        Args:
            name: one of `items`.
            target: pytree of arrays or shapes; the result has its structure and dtypes. None:
                nested dicts as they are on disk, with list indices as strings.

        Raises:
            CheckpointError: the item is missing or broken, has an array whose checksum is another,
                or does not fit the target.
        """
        if name not in self.items:
            raise CheckpointError(
                f"{self.path} has no item {name!r}; it has {', '.join(self.items) or 'none'}"
            )
        try:
            plain = _read_arrays(self.path / name)
        # Orbax and TensorStore raise errors of many types on broken files.
        except Exception as error:
            raise CheckpointError(
                f"item {name!r} of the checkpoint {self.path} cannot be read: the files are "
                f"incomplete or damaged; use another checkpoint ({short_reason(error)})"
            ) from error
        if self.verify:
            self._verify(name, plain)
        if target is None:
            return plain
        try:
            return from_plain(plain, target)
        except ValueError as error:
            raise CheckpointError(
                f"item {name!r} of the checkpoint {self.path} does not fit the model: {error}"
            ) from error

    def _verify(self, name: str, plain: dict[str, Any]) -> None:
        if not (self.path / CHECKSUMS).is_dir():
            _note_unchecked(self.path)
            return
        difference = first_difference(plain, _read_checksums(self.path).get(name, {}))
        if difference:
            raise CheckpointError(
                f"{self.path / name} is damaged: {difference}; its bytes have changed since it was "
                "written. Use another checkpoint or copy this one again"
            )


@cache
def _note_unchecked(path: Path) -> None:
    """Say it once for each checkpoint."""
    absl_logging.info(
        "%s has no checksums (an older version wrote it): its arrays are not checked", path
    )


def _read_checksums(path: Path) -> dict[str, Any]:
    """Return item -> array -> checksum; the entry of the meta is a text."""
    content = _read_json(path / CHECKSUMS)
    for name, values in content.items():
        texts = values.values() if isinstance(values, dict) else [values]
        if (name == META) == isinstance(values, dict) or not all(type(t) is str for t in texts):
            raise CheckpointError(
                f"{path / CHECKSUMS / _JSON_FILE} holds no checksums: the checkpoint is damaged; "
                "use another one"
            )
    return content


def _read_arrays(directory: Path) -> dict[str, Any]:
    with (
        utf8_path(directory) as directory,
        quiet_orbax(),
        quiet_late_errors(),
        ocp.PyTreeCheckpointer() as reader,
    ):
        tree = reader.metadata(directory).item_metadata.tree
        # As numpy arrays, whatever the number of devices that saved them.
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(directory, restore_args=restore_args)


@contextmanager
def quiet_late_errors() -> Iterator[None]:
    """Print no errors of reads or writes that end after another one of the item has failed.

    When an array cannot be read or written, Orbax does not wait for the others, which may end long
    after the error was raised and their event loop closed. Hence the filters stay in place on an
    error.
    """
    hook = sys.unraisablehook
    loggers = logging.getLogger("asyncio"), logging.getLogger("absl")

    def print_unrelated(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    def is_unrelated(record: logging.LogRecord) -> bool:
        # Orbax logs what its threads raise, and raises it here too.
        late = (
            "exception was never retrieved",
            "Task was destroyed",
            "_SignalingThread.run() raised",
        )
        return not any(text in record.getMessage() for text in late)

    sys.unraisablehook = print_unrelated
    for logger in loggers:
        logger.addFilter(is_unrelated)
    yield
    sys.unraisablehook = hook
    for logger in loggers:
        logger.removeFilter(is_unrelated)


def short_reason(error: Exception) -> str:
    """Return an error's type and the start of its text, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json((path / _JSON_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / _JSON_FILE} cannot be read: the checkpoint is incomplete or damaged; use "
            f"another one ({short_reason(error)})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path / _JSON_FILE} does not hold a JSON object")
    return content


def open_folder(path: Path) -> Checkpoint[dict[str, Any]]:
    """Open a checkpoint folder.

    Raises:
        CheckpointError: its JSON items are missing or broken.
    """
    progress = _read_progress(path) if (path / PROGRESS).is_dir() else Progress()
    meta = _read_json(path / META)
    if (path / CHECKSUMS).is_dir() and _read_checksums(path).get(META) != checksum_json(meta):
        # No error: it is JSON, which a user may have changed on purpose.
        absl_logging.warning("%s has changed since it was written", path / META / _JSON_FILE)
    return Checkpoint(path=path, meta=meta, progress=progress)


def _read_progress(path: Path) -> Progress:
    saved = _read_json(path / PROGRESS)
    try:
        return Progress.from_json(saved)
    except ValueError as error:
        raise CheckpointError(
            f"{path / PROGRESS} holds no progress of a run ({error}): use another checkpoint"
        ) from error


def complete_steps(directory: Path) -> dict[int, Path]:
    """Return step -> checkpoint of a `checkpoints` folder, in order; links are ignored."""
    if not directory.is_dir():
        return {}
    matches = ((_STEP_NAME.fullmatch(p.name), p) for p in directory.iterdir() if p.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def best_progress(directory: Path) -> Progress | None:
    """Return the progress at the best checkpoint of a `checkpoints` folder; None without a score.

    Raises:
        CheckpointError: a checkpoint's JSON items are missing or broken.
    """
    return best_of(*map(_read_progress, complete_steps(directory).values()))


def open_checkpoint(path: str | Path, *, verify: bool = True) -> Checkpoint[dict[str, Any]]:
    """Open a run folder (its best checkpoint, else its last) or a checkpoint folder.

    Args:
        path: of the folder.
        verify: see `Checkpoint`.

    Raises:
        CheckpointError: the path is neither, or the checkpoint is broken.
    """
    try:
        folder = expand_path(path, error=CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"the checkpoint cannot be read: {error}") from error
    try:
        return replace(_find(folder), verify=verify)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {short_reason(error)}") from error


def _find(path: Path) -> Checkpoint[dict[str, Any]]:
    if path.name in (LAST, BEST) and not (path / META).is_dir():
        # A stale link of a process that was killed; its target is still among the checkpoints.
        steps = complete_steps(path.parent)
        if steps:
            return _open_one_of(steps, best=path.name == BEST)
    if not path.exists():
        raise CheckpointError(f"there is no {path}: give a run folder or a checkpoint folder")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file, not a run folder or a checkpoint folder")
    if (path / META).is_dir():
        return open_folder(path.resolve())
    steps = complete_steps(path / DIRECTORY if (path / DIRECTORY).is_dir() else path)
    if not steps:
        files = sorted(file.name for file in path.glob("*.ckpt"))
        hint = f"; name a file in it: {', '.join(files[:5])}" if files else ""
        raise CheckpointError(
            f"{path} is neither a run folder with a whole checkpoint ({DIRECTORY}/step_<n>) nor a "
            f"checkpoint folder{hint}"
        )
    return _open_one_of(steps, best=True)


def _open_one_of(steps: Mapping[int, Path], *, best: bool) -> Checkpoint[dict[str, Any]]:
    """Open the best checkpoint if asked for and if any has a score, else the last."""
    progress = best_of(*map(_read_progress, steps.values())) if best else None
    return open_folder(steps[max(steps) if progress is None else progress.step].resolve())
