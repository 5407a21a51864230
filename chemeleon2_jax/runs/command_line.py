"""What the command lines share: readable logs, one-line errors, exit codes, files they write."""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.atomic_files import replacing
from chemeleon2_jax.common.console import ON_CONSOLE
from chemeleon2_jax.common.errors import ConfigError, UserError
from chemeleon2_jax.common.paths import printable
from chemeleon2_jax.common.suggest import nearest

PACKAGE = "chemeleon2_jax"
_SOURCES = str(Path(__file__).parents[1])
_FLAG = re.compile(r"--?(\w+)(?:=(.*))?", re.DOTALL)
INTERRUPTED = 130  # 128 + SIGINT


@dataclass(frozen=True)
class Alias:
    """A flag that Chemeleon2 has: the flag here, or advice where there is none.

    Attributes:
        flag: name here; '' for none.
        convert: its value there -> its value here.
        advice: what to do instead.
    """

    flag: str = ""
    convert: Callable[[str], str] = str
    advice: str = ""


def run(
    main: Callable[[], int],
    *,
    parse_flags: Callable[[list[str]], list[str]] | None = None,
    aliases: Mapping[str, Alias] | None = None,
) -> NoReturn:
    """Run a command line and end the process with its exit code.

    A `UserError` becomes one line and exit code 1, any other error shows its traceback.

    Args:
        main: returns the exit code.
        parse_flags: parser of the arguments; absl's by default.
        aliases: other names of flags.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest = (parse_flags or flags.FLAGS)(take_aliases(list(argv), aliases or {}))
            if rest[1:]:
                raise ConfigError(f"unexpected argument {rest[1]!r}; flags are --name=value")
        except flags.UnrecognizedFlagError as error:
            _fail(ConfigError(describe_unknown(error.flagname, others=aliases or ())))
        except (ConfigError, flags.Error) as error:
            _fail(error)
        return rest

    def guarded(_argv: Sequence[str]) -> int:
        log_to_console()
        for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8 must not end a command
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        # pymatgen warns whenever it sorts the elements of a formula with a noble gas.
        warnings.filterwarnings("ignore", message="No Pauling electronegativity")
        try:
            return main()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except UserError as error:
            _fail(error)

    app.run(guarded, flags_parser=parse)


def take_aliases(argv: list[str], aliases: Mapping[str, Alias]) -> list[str]:
    """Return the arguments with the flags' names here; say each on stderr.

    Raises:
        ConfigError: a flag that has no counterpart; with its advice.
    """
    taken, remaining = [], iter(argv)
    for argument in remaining:
        match = _FLAG.fullmatch(argument)
        alias = aliases.get(match[1]) if match else None
        if match is None or alias is None or match[1] in flags.FLAGS:
            taken.append(argument)
            continue
        if not alias.flag:
            raise ConfigError(f"--{match[1]}: {alias.advice}")
        value = alias.convert(match[2] if match[2] is not None else next(remaining, ""))
        print(f"--{match[1]} is --{alias.flag}={value} here", file=sys.stderr)
        taken.append(f"--{alias.flag}={value}")
    return taken


def describe_unknown(name: str, *, others: Iterable[str] = ()) -> str:
    """Return a line about an unknown flag, with the nearest of the command's own flags and of other
    names.
    """
    by_module = flags.FLAGS.flags_by_module_dict()
    own = [f.name for module, known in by_module.items() for f in known if "absl" not in module]
    near = nearest(name, [*own, *others])
    hint = "--help lists the flags." if near is None else f"Did you mean: {near}?"
    return f"Unknown command line flag {name!r}. {hint}"


def _fail(error: Exception) -> NoReturn:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    sys.exit(1)


def _is_heard(record: logging.LogRecord) -> bool:
    """Return whether to keep a record: libraries' from warnings on, since Orbax logs pages."""
    # By path: all records of absl's logger have one name.
    return record.pathname.startswith(_SOURCES) or record.levelno >= logging.WARNING


class _ConsoleHandler(logging.Handler):
    """Writes lines on stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and not hosts.is_first():
            return  # the first process says the same
        text = getattr(record, ON_CONSOLE, None)
        if text is None:
            text = self.format(record)
        if text:
            prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            tqdm.write(printable(prefix + text), file=sys.stderr)


def log_to_console() -> None:
    """Show log records on stderr, in place of absl's handler."""
    root = logging.getLogger()
    root.removeHandler(absl_logging.get_absl_handler())
    handler = _ConsoleHandler()
    handler.addFilter(_is_heard)
    root.addHandler(handler)


class _LogFile(logging.FileHandler):
    """A log file; the run goes on when its disk is full, with one line that says so."""

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it is opened here, which `logging` does not expect to fail
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        del record
        if not self._failed:
            self._failed = True
            reason = sys.exc_info()[1]
            tqdm.write(f"warning: {self.baseFilename} ends here: {reason}", file=sys.stderr)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append log records to a file, and the error that ends the block.

    An error that the user can mend is logged as a line, any other with its traceback.
    """
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(module)s: %(message)s"))
    handler.addFilter(_is_heard)
    logging.getLogger().addHandler(handler)
    try:
        yield
    except BaseException as error:
        handler.handle(_record_of(error))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _record_of(error: BaseException) -> logging.LogRecord:
    one_line = isinstance(error, UserError | KeyboardInterrupt | SystemExit)
    return logging.LogRecord(
        name=PACKAGE,
        level=logging.ERROR,
        pathname=__file__,
        lineno=0,
        msg=f"{type(error).__name__}: {error}",
        args=(),
        exc_info=None if one_line else (type(error), error, error.__traceback__),
    )


def check_output_dir(path: Path) -> None:
    """Check that --output_dir can be made, without making it.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:
        raise ConfigError(f"--output_dir: {error}") from error
    if not nearest.is_dir():
        raise ConfigError(f"--output_dir: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_dir: {nearest} cannot be written to")


def make_output_dir(path: Path) -> None:
    """Make --output_dir if it is missing.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir: {error}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
