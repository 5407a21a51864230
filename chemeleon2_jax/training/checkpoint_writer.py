"""Writing a run's checkpoints: `checkpoints/step_<n>`, with `last` and `best` as links.

A new checkpoint appears by one rename, and an old one disappears by one rename before its files are
deleted: a folder `step_<n>` is complete at any moment at which the process may be killed.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.paths import check_checkpoint_path
from chemeleon2_jax.training.checkpoint_reader import (
    BEST,
    CHECKSUMS,
    DIRECTORY,
    LAST,
    META,
    PROGRESS,
    Checkpoint,
    best_progress,
    complete_steps,
    open_folder,
    quiet_late_errors,
    quiet_orbax,
    short_reason,
)
from chemeleon2_jax.training.checksums import checksum_json, tree_checksums
from chemeleon2_jax.training.plain_trees import to_plain
from chemeleon2_jax.training.progress import Progress

PyTree = Any

_TRASH, _ASIDE = ".trash", ".aside"


class CheckpointWriter:
    """Writes the checkpoints of one run and keeps the last and the best of them.

    Args:
        run_dir: the run folder.
        monitor, mode: validation value that ranks checkpoints, and 'min' or 'max'.
        keep_best: number of best checkpoints to keep.
    """

    def __init__(self, run_dir: Path, *, monitor: str, mode: str, keep_best: int = 1) -> None:
        self.run_dir = Path(run_dir).absolute()
        self.directory = self.run_dir / DIRECTORY
        check_checkpoint_path(self.directory, error=CheckpointError)
        self._monitor, self._mode = monitor, mode
        with self._failing_as("opened for writing"), quiet_orbax():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._tidy()  # after a process that was killed
            hosts.wait_for_all()
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=_manager_options(monitor, mode=mode, keep_best=keep_best),
                handler_registry=_handlers(),
            )
            self._update_links()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        with quiet_orbax():
            self._manager.close()

    @property
    def last_step(self) -> int | None:
        """Step of the last complete checkpoint."""
        return max(complete_steps(self.directory), default=None)

    @property
    def best_step(self) -> int | None:
        """Step of the best complete checkpoint; None without a validation value."""
        best = self.best
        return None if best is None else best.step

    @property
    def best(self) -> Progress | None:
        """Progress at the best complete checkpoint; None without a validation value."""
        return best_progress(self.directory)

    def describe_last(self) -> str:
        """Return a clause about the last checkpoint, for error messages."""
        try:
            step = self.last_step
        except OSError as error:
            return f"earlier checkpoints cannot be listed ({error})"
        if step is None:
            return "this run has no checkpoint yet"
        return f"the last good checkpoint is {self.directory / f'step_{step}'}"

    def last(self) -> Checkpoint | None:
        """Open the last complete checkpoint, the same in every process; None if there is none."""
        step = hosts.from_first(lambda: self.last_step)
        return None if step is None else open_folder(self.directory / f"step_{step}")

    def save(
        self, progress: Progress, *, items: Mapping[str, PyTree], meta: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint, delete those that are neither last nor best, and move the links.

        Args:
            progress: of the run; a checkpoint without a score is kept only while it is the last.
            items: trees of arrays by name.
            meta: JSON-able description of the model.

        Raises:
            CheckpointError: the disk is full or read-only, or writing failed in another way; the
                earlier checkpoints are intact.
        """
        step = progress.step
        trees = {name: to_plain(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        with self._failing_as(f"saved at step {step}"), quiet_orbax(), quiet_late_errors():
            args = {
                **_save_args(trees, meta),
                PROGRESS: ocp.args.JsonSave(progress.to_json()),
            }
            self._move_aside(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(**args),
                metrics=None if progress.score is None else dict(progress.values),
                force=True,
            )
            self._update_links()
            self._tidy()
            hosts.wait_for_all()

    def _move_aside(self, step: int) -> None:
        """Make room for a second checkpoint of a step: the first was saved unvalidated."""
        path = self.directory / f"step_{step}"
        if hosts.from_first(path.is_dir):
            if hosts.is_first():
                (self.directory / _ASIDE).mkdir(exist_ok=True)
                path.rename(self.directory / _ASIDE / path.name)
            hosts.wait_for_all()
            self._manager.reload()

    def _tidy(self) -> None:
        """Delete unfinished and discarded checkpoints; put back one moved aside in vain."""
        if not hosts.is_first():
            return
        for step, path in complete_steps(self.directory / _ASIDE).items():
            if not (self.directory / f"step_{step}").exists():
                path.rename(self.directory / f"step_{step}")
        unfinished = [path.name for path in self.directory.glob("step_*.orbax-checkpoint-tmp*")]
        for name in (_ASIDE, _TRASH, *unfinished):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def _update_links(self) -> None:
        if not hosts.is_first():
            return
        for name, step in ((LAST, self.last_step), (BEST, self.best_step)):
            link = self.directory / name
            if step is None:
                link.unlink(missing_ok=True)
                continue
            temporary = self.directory / f".{name}.tmp"
            temporary.unlink(missing_ok=True)
            try:
                temporary.symlink_to(f"step_{step}")
            except OSError:  # a file system without links
                temporary.write_text(f"step_{step}\n")
            os.replace(temporary, link)

    @contextmanager
    def _failing_as(self, action: str) -> Iterator[None]:
        try:
            yield
        # A full disk raises OSError, ValueError or a runtime error of TensorStore.
        except Exception as error:
            if hosts.is_first():
                with suppress(OSError):  # a read-only disk
                    self._tidy()
            raise CheckpointError(
                f"the checkpoint could not be {action} in {self.directory}: {_reason(error)}; "
                f"{self.describe_last()}. Make room (or make the folder writable) and resume with "
                f"--config.resume_from={self.run_dir}"
            ) from error


def write_checkpoint(
    folder: Path,
    *,
    items: Mapping[str, PyTree],
    meta: Mapping[str, Any],
    target: Path | None = None,
) -> None:
    """Write a checkpoint outside of a run; it appears by one rename.

    Args:
        folder: a new or an empty one.
        items: trees of arrays by name.
        meta: JSON-able description of the model.
        target: the folder that an error names, if this one is temporary.

    Raises:
        CheckpointError: the folder cannot be written, or is not empty.
    """
    folder = Path(folder).absolute()
    check_checkpoint_path(folder, error=CheckpointError)
    trees = {name: to_plain(tree) for name, tree in items.items()}
    handler = ocp.CompositeCheckpointHandler(handler_registry=_handlers())
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        with quiet_orbax(), quiet_late_errors(), ocp.Checkpointer(handler) as writer:
            writer.save(folder, args=ocp.args.Composite(**_save_args(trees, meta)))
    # A full disk raises OSError, ValueError or a runtime error of TensorStore.
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint could not be written to {target or folder}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Return why a checkpoint cannot be written."""
    text = f"{error} {error.__cause__ or ''}"
    if "No space left on device" in text:
        return "no space is left on the disk"
    if "Disk quota exceeded" in text:
        return "the disk quota is exceeded"
    return short_reason(error)


def _save_args(trees: Mapping[str, dict[str, Any]], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return Orbax's arguments for nested dicts of arrays, a meta, and the checksums of both."""
    # A meta as it will be read: JSON has neither tuples nor keys of other types.
    read_meta = json.loads(json.dumps(dict(meta)))
    checksums = {name: tree_checksums(tree) for name, tree in trees.items()}
    return {
        **{name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()},
        META: ocp.args.JsonSave(dict(meta)),
        CHECKSUMS: ocp.args.JsonSave({META: checksum_json(read_meta), **checksums}),
    }


def _manager_options(monitor: str, *, mode: str, keep_best: int) -> ocp.CheckpointManagerOptions:
    def score(metrics: Mapping[str, float]) -> float:
        return metrics[monitor]

    # Both are needed: the policy keeps the last checkpoint too, best_fn stores the metrics.
    return ocp.CheckpointManagerOptions(
        best_fn=score,
        best_mode=mode,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(1),
                checkpoint_managers.BestN(
                    get_metric_fn=score,
                    reverse=mode == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        ),
        step_prefix="step",
        todelete_subdir=_TRASH,
        enable_async_checkpointing=False,
    )


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    # Compression makes a checkpoint 8 % smaller and saving ten times slower.
    arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
    registry.add(None, ocp.args.PyTreeSave, arrays)
    registry.add(None, ocp.args.PyTreeRestore, arrays)
    registry.add(None, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return registry
