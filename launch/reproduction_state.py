"""Commands that are run once: each has a folder of its own, named after its flags and its config.

A folder with `done.json` holds the result of a whole command, and it is not run again. A command
with other flags, another config or other inputs (whose folders are among its flags) has another
folder. A training run that was stopped is resumed. See `reproduce.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from absl import logging

from chemeleon2_jax.common.atomic_files import replacing
from chemeleon2_jax.common.errors import ConfigError, UserError
from chemeleon2_jax.runs.config import to_json
from chemeleon2_jax.runs.run_folder import CONFIG_FILE

DONE_FILE, SPENT_FILE, LOG_FILE = "done.json", "spent.json", "output.log"
ROOT = Path(__file__).resolve().parents[1]


class CommandError(UserError):
    """A command failed."""


class NotDoneError(Exception):
    """A command has no result yet, and none was to be run."""


@dataclass(frozen=True)
class Done:
    """The result of a command.

    Attributes:
        folder: of all that it wrote.
        command: as typed in the checkout.
        cpu_seconds: user and system time of all attempts, with those of its own processes.
        seconds: wall time of all attempts.
        run: run folder of a training; else the folder.
    """

    folder: Path
    command: str
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    run: Path = field(default=Path())


@dataclass(frozen=True)
class Runner:
    """Runs the commands of one row.

    Attributes:
        folder: of the row and seed.
        mode: "run" runs what is not done; "plan" prints every command and runs none; "read" raises
            `NotDoneError` at the first that is not done.
    """

    folder: Path
    mode: str = "run"

    def train(self, name: str, stage: str, experiment: str, flags: Sequence[str]) -> Done:
        """Train a stage; its only run, resumed if it was stopped, is in the result."""
        config = importlib.import_module(f"configs.train_{stage}").get_config(experiment)
        program = "-m chemeleon2_jax.train"
        first = f"--config=configs/train_{stage}.py:{experiment}"
        done = self.run(
            name,
            program,
            [first, *flags],
            output="--config.paths.log_dir={}",
            config=to_json(config),
            resumes=f"train_{stage}",
        )
        run = _only_run(done.folder, f"train_{stage}")
        return Done(**{**vars(done), "run": run or done.folder / f"train_{stage}" / "runs" / "*"})

    def run(
        self,
        name: str,
        program: str,
        flags: Sequence[str],
        *,
        output: str = "--output_dir={}",
        config: str = "",
        resumes: str = "",
    ) -> Done:
        """Run a command, unless it is done.

        Args:
            name: first part of the folder's name.
            program: "-m <module>" or a script's path in the checkout.
            flags: without that of its output.
            output: that flag, with {} for the folder.
            config: what else decides on the result.
            resumes: task whose stopped run is resumed; '' for a command that starts again.

        Raises:
            CommandError: it failed.
            NotDoneError: it is not done, in mode "read".
        """
        key = hashlib.sha256(json.dumps([program, *flags, output, config]).encode()).hexdigest()
        folder = self.folder / f"{name}-{key[:8]}"
        arguments = [*program.split(), *flags, output.format(folder)]
        command = shlex.join(["python", *arguments])
        if self.mode == "plan":
            state = "done" if (folder / DONE_FILE).exists() else "to do"
            print(f"[{state}] {command}")
            return Done(folder, command)
        known = _read_done(folder)
        if known is not None:
            return known
        if self.mode == "read":
            raise NotDoneError(name)
        stopped = _only_run(folder, resumes) if resumes else None
        if stopped is not None:
            arguments.append(f"--config.resume_from={stopped}")
        return _run(folder, command, arguments)


def _run(folder: Path, command: str, arguments: Sequence[str]) -> Done:
    """Run a command in the checkout, and record its time and its end."""
    folder.mkdir(parents=True, exist_ok=True)
    logging.info("$ %s", shlex.join(["python", *arguments]))
    before, started = _children_seconds(), time.monotonic()
    code: int | None = None
    try:
        with (folder / LOG_FILE).open("ab") as log:
            code = subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log, check=False
            ).returncode
    finally:
        spent = _read_json(folder / SPENT_FILE) or {"cpu_seconds": 0.0, "seconds": 0.0}
        spent["cpu_seconds"] += _children_seconds() - before
        spent["seconds"] += time.monotonic() - started
        _write_json(folder / SPENT_FILE, spent)
    if code != 0:
        last = (folder / LOG_FILE).read_text(errors="replace").strip().splitlines()[-1:]
        raise CommandError(
            f"a command ended with code {code}: {' '.join(last)}\n  {command}\n"
            f"  Its output is in {folder / LOG_FILE}; start again when that is mended."
        )
    done = Done(folder, command, **spent)
    _write_json(folder / DONE_FILE, {k: v for k, v in asdict(done).items() if k not in _PATHS})
    return done


_PATHS = ("folder", "run")


def _children_seconds() -> float:
    """CPU seconds of all ended child processes, and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


def _only_run(folder: Path, task: str) -> Path | None:
    """Return the newest run of a task in a folder; None without one."""
    runs = sorted(path.parent for path in folder.glob(f"{task}/runs/*/{CONFIG_FILE}"))
    return runs[-1] if runs else None


def _read_done(folder: Path) -> Done | None:
    values = _read_json(folder / DONE_FILE)
    return None if values is None else Done(folder=folder, **values)


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; remove its folder") from error


def _write_json(path: Path, values: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
