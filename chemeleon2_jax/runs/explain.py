"""The keys of a config with their values and the comments that explain them in the config's files.

A comment stands behind a key, or in the lines above it.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from chemeleon2_jax.runs.config import flatten

_WIDTH = 48  # of key and value, before the comment


def explain(config: ConfigDict, files: Iterable[Path]) -> str:
    """Return a line for each key: `key = value`, and its comment.

    Args:
        config: resolved.
        files: Python files whose functions return the blocks of the config.
    """
    comments: dict[tuple[str, str], str] = {}
    for file in files:
        comments |= _comments_of(file.read_text("utf-8"))
    lines = []
    for key, value in flatten(config).items():
        setting = f"{key} = {json.dumps(value)}"
        comment = _find(key, comments)
        lines.append(f"{setting:<{_WIDTH}}  # {comment}" if comment else setting)
    return "\n".join(lines)


def _find(key: str, comments: dict[tuple[str, str], str]) -> str:
    """Return the comment of a key: in the function of one of its blocks, the innermost first."""
    parts = key.split(".")
    for index in reversed(range(len(parts) - 1)):
        rest = ".".join(parts[index + 1 :])
        for function in (parts[index], f"_{parts[index]}"):
            if (function, rest) in comments:
                return comments[function, rest]
    return comments.get(("base", key), "")


def _comments_of(source: str) -> dict[tuple[str, str], str]:
    """Return (function, dotted key in its result) -> comment."""
    behind: dict[int, str] = {}
    above: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = not token.line[: token.start[1]].strip()
            (above if own_line else behind)[token.start[0]] = token.string.lstrip("# ")

    def comment_at(line: int) -> str:
        if line in behind:
            return behind[line]
        first = line
        while first - 1 in above:
            first -= 1
        return " ".join(above[number] for number in range(first, line))

    found = {}
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef):
            for key, line in _keys_of(function):
                comment = comment_at(line)
                if comment:
                    found[function.name, key] = comment
    return found


def _keys_of(function: ast.FunctionDef) -> Iterator[tuple[str, int]]:
    """Yield the dotted keys of the dicts that a function makes, and those of `config.<key> = ...`,
    with their lines.
    """
    for statement in function.body:
        if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Call):
            for argument in statement.value.args:
                yield from _keys_in(argument, "")
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute):
            yield statement.targets[0].attr, statement.lineno


def _keys_in(node: ast.expr, prefix: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, ast.Dict):
        return
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            name = f"{prefix}{key.value}"
            yield name, key.lineno
            yield from _keys_in(value, f"{name}.")
