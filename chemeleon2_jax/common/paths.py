"""Paths as people write them: with `~`, variables, and names that are not UTF-8."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chemeleon2_jax.common.errors import ConfigError, UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WILDCARD = re.compile(r"[*?[]")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand_path(path: str | Path, *, error: type[UserError] = ConfigError) -> Path:
    """Return a path with `~`, `~user`, `$NAME` and `${NAME}` replaced, as a shell does.

    A shell leaves `--flag=~/x` alone. A path that exists with a `$` in its name is taken as it is.

    Args:
        path: of a flag, a config or an argument.
        error: kind of error to raise.

    Raises:
        UserError: of that kind: a URL, an unknown variable or user, or no path at all.
    """
    text = os.fspath(path)
    url = _URL.match(text)
    if url:
        raise error(
            f"{printable(text)} is a URL: {url[1]}:// is not supported; give a path of a file "
            "system of this machine"
        )
    try:
        if "$" in text and not os.path.lexists(text):
            text = _VARIABLE.sub(_value, text)
        expanded = Path(text).expanduser()
        if "\0" in text:
            raise ValueError("it holds a null byte")
        expanded.exists()  # raises where a name is too long
    except (LookupError, OSError, RuntimeError, ValueError) as problem:
        # RuntimeError: the home of an unknown user
        detail = problem.args[0] if isinstance(problem, LookupError) else problem
        raise error(f"{printable(text)[:200]!r} cannot be opened: {detail}"[:500]) from problem
    return expanded


def _value(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    if name not in os.environ:
        raise LookupError(f"the variable {name} is not set")
    return os.environ[name]


def check_checkpoint_path(path: Path, *, error: type[UserError]) -> None:
    """Check that checkpoints in a folder can be read again.

    Orbax looks for the parts of a checkpoint by a pattern that begins with the folder's own name:
    with a wildcard in it, it finds none, and what was saved is lost.

    Raises:
        UserError: of the given kind: the name is not UTF-8, or holds a wildcard.
    """
    absolute = Path(os.path.abspath(path))
    reason = "the name is not UTF-8" if not _is_utf8(absolute) else ""
    if _WILDCARD.search(os.fspath(absolute)):
        reason = "the characters * ? [ in a name are wildcards"
    if reason:
        raise error(
            f"checkpoints cannot be written to {printable(absolute)}: {reason}; rename the folder "
            "or choose another"
        )


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yield the path, or a temporary link to it if its name is not UTF-8: TensorStore reads from
    no such name.
    """
    if _is_utf8(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.absolute())
        yield link


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str | Path) -> str:
    r"""Return a path as text that can be printed and written anywhere: `\xff` for a byte that is
    not UTF-8.
    """
    text = os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character, as JSON can hold
        return text.encode("utf-8", "backslashreplace").decode()
