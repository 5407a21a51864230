"""CIF text to data blocks, by gemmi, with repairs of what people's files often have wrong."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gemmi import cif

MAX_BYTES = 64_000_000
"""Larger files are refused: of those that hold one crystal, none is."""

_PREFIXES = ("_cell", "_atom_site", "_space_group", "_symmetry", "_chemical_formula")
# Loops and texts of these are long, and no part of the crystal.
_NOT_READ = ("_atom_site_aniso", "_atom_sites", "_cell_measurement")
_CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127], " ")
_UNQUOTED = re.compile(
    r"^([ \t]*_[^\s'\"]+[ \t]+)([^\s'\";#_][^'\"\n#]*?[ \t]+[^'\"\n#]*?)[ \t]*$", re.M
)
_MESSAGE = re.compile(r"^string(?::(\d+))?(?::\d+\(\d+\))?(?: in [^:]*)?: *(.*)$", re.S)


@dataclass(frozen=True)
class Block:
    """One data block.

    Attributes:
        name: after `data_`.
        values: tag in lower case, with `.` as `_` -> its values, unquoted; "" for `.` and `?`.
        repeated: tags that stand in the block more than once, with other values.
    """

    name: str
    values: dict[str, list[str]]
    repeated: tuple[str, ...] = ()

    def first(self, *tags: str) -> str:
        """Return the first known value of the first of these tags that has one; "" for none."""
        for tag in tags:
            for value in self.values.get(tag, ()):
                if value:
                    return value
        return ""

    def column(self, *tags: str) -> list[str] | None:
        """Return all values of the first of these tags that is there; None for none."""
        return next((self.values[tag] for tag in tags if tag in self.values), None)


def parse_blocks(content: str | bytes) -> tuple[list[Block], tuple[str, ...]]:
    """Return the data blocks of a CIF, with the tags of crystals alone, and the repairs made.

    Raises:
        ValueError: "unparsable CIF: ..." with the line.
    """
    text = decode(content)
    repairs = []
    if not text.strip():
        raise ValueError("unparsable CIF: empty")
    if "\0" in text:
        raise ValueError("unparsable CIF: it holds zero bytes, it is no text")
    if "\n" not in text and "\r" not in text and "\\n" in text:
        text = text.replace("\\r\\n", "\n").replace("\\n", "\n")
        repairs.append(r"the two characters \n read as ends of lines")
    # Only names of people and titles hold other characters, and gemmi refuses them.
    text = text.translate(_CONTROL).encode("ascii", "replace").decode()
    document = None
    for repair, note in _REPAIRS:
        repaired = repair(text)
        if document is None and repaired is not None:
            document, message = _parse(repaired)
            if document is not None and note:
                repairs.append(note)
            text = repaired
    if document is None:
        raise ValueError(f"unparsable CIF: {message}")
    return [_read_block(block) for block in document], tuple(repairs)


def decode(content: str | bytes) -> str:
    """Return text of bytes in UTF-8 or UTF-16 with a byte order mark, UTF-8, or else Latin-1."""
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"unparsable CIF: {len(content) / 1e6:.0f} MB are too long for a crystal; the limit is "
            f"{MAX_BYTES / 1e6:.0f} MB"
        )
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _parse(text: str) -> tuple[cif.Document | None, str]:
    """Return a document, or None and the reason."""
    try:
        return cif.read_string(text, 0), ""
    except (RuntimeError, ValueError) as error:
        match = _MESSAGE.match(str(error))
        if match is None:
            return None, " ".join(str(error).split())[:200]
        line, detail = match.groups()
        detail = " ".join(detail.split())[:120]
        loop = detail.removeprefix(_CUT_LOOP)
        if loop != detail:
            detail = f"an incomplete row in the loop of{loop}: the file is cut short, or values "
            detail += "with spaces lack their quotes"
        detail = _EXPLANATIONS.get(detail, detail)
        return None, f"line {line}: {detail}" if line else detail


_CUT_LOOP = "Wrong number of values in loop"
_EXPLANATIONS = {
    "parse error": "not the syntax of CIF; values with spaces need quotes",
    "expected block header (data_)": "no data_ line before it, so that it is no CIF",
}


def _add_header(text: str) -> str | None:
    start = text.lstrip()
    return "data_\n" + text if start.startswith("_") or start[:5].lower() == "loop_" else None


def _quote_values(text: str) -> str | None:
    repaired, count = _UNQUOTED.subn(r"\1'\2'", text)
    return repaired if count else None


_REPAIRS: tuple[tuple[Callable[[str], str | None], str], ...] = (
    (lambda text: text, ""),
    (_add_header, "no data_ line"),
    (_quote_values, "values with spaces taken without their quotes"),
)


def _read_block(block: cif.Block) -> Block:
    values: dict[str, list[str]] = {}
    repeated = []
    for tag, raw in _columns(block):
        name = tag.lower().replace(".", "_")
        if not name.startswith(_PREFIXES) or name.startswith(_NOT_READ):
            continue
        unquoted = [cif.as_string(value).strip() for value in raw]
        if values.setdefault(name, unquoted) != unquoted:
            repeated.append(name)
    return Block(block.name.strip(), values, tuple(repeated))


def _columns(block: cif.Block) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each tag of a block with its values."""
    item: Any  # its stubs have no types
    for item in block:
        pair, loop = item.pair, item.loop
        if pair:
            yield pair[0], [pair[1]]
        elif loop:
            tags = list(loop.tags)
            # One look tells loops that are long and no part of the crystal, as of reflections.
            if tags[0].lower().startswith(_PREFIXES):
                flat = loop.values
                yield from ((tag, flat[i :: len(tags)]) for i, tag in enumerate(tags))
