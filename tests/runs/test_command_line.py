"""What the command lines share: console, log file, errors and exit codes."""

import io
import logging
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr

import pytest
from tqdm import tqdm

from chemeleon2_jax.common import errors
from chemeleon2_jax.common.console import ON_CONSOLE
from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.runs import command_line as cli

MAIN = """
import logging, os, signal
import chemeleon2_jax
from absl import logging as absl_logging
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.common.errors import ConfigError
# A shell's background jobs ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
def main():
    source = chemeleon2_jax.__file__
    record = logging.LogRecord("absl", logging.INFO, source, 1, "ours", (), None)
    logging.getLogger().handle(record)
    logging.getLogger("other").info("theirs")
    absl_logging.info("theirs")
    logging.getLogger("other").warning("theirs")
    {body}
cli.run(main)
"""


@pytest.mark.parametrize(
    ("body", "code", "lines"),
    [
        ("return 143", 143, []),
        ("raise ConfigError('wrong key')", 1, ["error: wrong key"]),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, ["interrupted"]),
    ],
)
def test_exit_codes_and_console(repository_dir, body, code, lines):
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(body=body)],
        cwd=repository_dir,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert done.stderr.splitlines() == ["ours", "warning: theirs", *lines]


def test_unexpected_error_shows_its_traceback(repository_dir):
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(body="return {}['key']")],
        cwd=repository_dir,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'key'" in done.stderr


def test_every_error_of_a_user_is_caught_by_one_name():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {ConfigError, DatasetError, errors.NonFiniteError} <= set(kinds)
    assert all(issubclass(kind, errors.UserError) for kind in kinds)
    assert signal.SIGINT + 128 == cli.INTERRUPTED


class Terminal(io.StringIO):
    """Keeps all that is written to it, as if on a screen of 80 columns."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def lines(self):
        """What stands on the screen: a carriage return goes back to the start of its line."""
        lines = []
        for line in self.getvalue().split("\n"):
            columns = []
            for piece in line.split("\r"):
                columns[: len(piece)] = piece
            lines.append("".join(columns).rstrip())
        return lines


@contextmanager
def on_terminal():
    """Log to a screen; in the test itself, as pytest puts its own stderr in place before it."""
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    with redirect_stderr(Terminal()) as screen:
        cli.log_to_console()
        yield screen
    root.handlers[:] = handlers


def log(message, **extra):
    record = logging.LogRecord("absl", logging.INFO, cli.__file__, 1, message, (), None)
    vars(record).update(extra)
    logging.getLogger().handle(record)


def test_lines_do_not_tear_the_progress_bar():
    with on_terminal() as screen, tqdm(total=5, desc="vae", ncols=80, mininterval=0) as bar:
        for step in range(5):
            bar.update()
            log(f"step {step} " + "x" * 90)
    *lines, bar_line, last = screen.lines()
    assert lines == [f"step {step} " + "x" * 90 for step in range(5)]
    assert re.fullmatch(r"vae: 100%\|.*\| 5/5 \[.*\]", bar_line)
    assert last == ""


def test_console_has_its_own_text_and_the_log_file_the_message(tmp_path):
    with on_terminal() as screen, cli.log_file(tmp_path / "train.log"):
        log("all 25 numbers", **{ON_CONSOLE: "two numbers"})
        log("a long list", **{ON_CONSOLE: ""})
        log("a line")
    assert screen.lines() == ["two numbers", "a line", ""]
    text = (tmp_path / "train.log").read_text()
    assert [line.partition(": ")[2] for line in text.splitlines()] == [
        "all 25 numbers",
        "a long list",
        "a line",
    ]
