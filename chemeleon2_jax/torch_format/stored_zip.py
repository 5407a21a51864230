"""Zip archives of uncompressed entries, as PyTorch writes them, read piece by piece.

The directory at the archive's end is read once, within bounds; an entry's bytes are read when they
are asked for. Compressed and encrypted entries are refused: PyTorch writes neither, and a small
compressed file can claim to hold any amount of memory.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

from chemeleon2_jax.common.errors import CheckpointError

MAX_ENTRIES = 200_000
"""Most entries: a file of PyTorch has one for each tensor's storage."""

_MAX_DIRECTORY = 64 << 20
_MAX_COMMENT = 0xFFFF
_AGAIN = "get the file again"

# Signatures and fixed parts (PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16).
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11
_NONE16, _NONE32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an entry's header begins, how long its data is, where it must end, its checksum."""

    name: str
    header: int
    size: int
    end: int
    crc: int


class StoredZip:
    """An open archive; a context manager. Reading is safe from several threads.

    Attributes:
        path: the file.
        size: its length in bytes.
        entries: by name, in the order of the directory.
    """

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        """Read the directory of an archive; it owns the stream from then on.

        Raises:
            CheckpointError: not a whole archive, or one that PyTorch would not write.
        """
        self.path = path
        self._stream = stream
        self._lock = threading.Lock()
        self.size = stream.seek(0, 2)
        self.entries = self._directory()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._stream.close()

    def read(self, entry: Entry) -> bytes:
        """Return an entry's bytes."""
        buffer = bytearray(entry.size)
        self.read_into(entry, 0, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, entry: Entry, start: int, buffer: memoryview) -> None:
        """Fill a buffer with an entry's bytes from `start` on.

        Raises:
            CheckpointError: the file ends before, or cannot be read.
        """
        header = self._bytes(entry.header, _LOCAL.size)
        fields = _LOCAL.unpack(header)
        begin = entry.header + _LOCAL.size + fields[9] + fields[10]
        if fields[0] != b"PK\x03\x04" or begin + entry.size > entry.end:
            raise self._damaged(f"the entry {entry.name!a} is not where the directory says")
        self._fill(begin + start, buffer)

    def matches(self, entry: Entry, data: bytes | memoryview) -> bool:
        """Whether an entry's bytes have the checksum that the directory gives."""
        return zlib.crc32(data) == entry.crc

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: the file is damaged: {what}; {_AGAIN}")

    def _bytes(self, start: int, length: int) -> bytes:
        buffer = bytearray(length)
        self._fill(start, memoryview(buffer))
        return bytes(buffer)

    def _fill(self, start: int, buffer: memoryview) -> None:
        done = 0
        try:
            with self._lock:
                self._stream.seek(start)
                while done < len(buffer):
                    # Files are read in pieces: one read returns at most 2 GiB.
                    count = self._stream.readinto(buffer[done : done + (1 << 30)])
                    if not count:
                        raise self._damaged(f"it ends at byte {start + done}")
                    done += count
        except OSError as error:
            raise CheckpointError(f"{self.path}: it cannot be read: {error}") from error
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path}: it was closed; open it again") from error

    def _directory(self) -> dict[str, Entry]:
        count, length, start = self._end()
        if count > MAX_ENTRIES or length > _MAX_DIRECTORY:
            raise CheckpointError(f"{self.path}: {count} entries are more than any checkpoint's")
        directory = self._bytes(start, length)
        found: list[tuple[int, int, int, str]] = []
        position = 0
        for _ in range(count):
            if position + _CENTRAL.size > length:
                raise self._damaged("its directory is too short")
            fields = _CENTRAL.unpack_from(directory, position)
            begin = position + _CENTRAL.size
            ends = [begin + sum(fields[10 : 11 + i]) for i in range(3)]
            if fields[0] != b"PK\x01\x02" or ends[2] > length:
                raise self._damaged("its directory is not one")
            name = self._name(directory[begin : ends[0]], fields[3])
            size, header = self._place(name, fields, directory[ends[0] : ends[1]])
            found.append((header, size, fields[7], name))
            position = ends[2]
        if position != length:
            raise self._damaged("its directory is longer than what it lists")
        return self._check(found, start)

    def _end(self) -> tuple[int, int, int]:
        """Number of entries, length and start of the directory."""
        tail_start = max(0, self.size - _END.size - _MAX_COMMENT)
        tail = self._bytes(tail_start, self.size - tail_start)
        # At the very end, unless there is a comment; its numbers may look like its signature.
        at = len(tail) - _END.size
        if tail[at : at + 4] != b"PK\x05\x06":
            at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            raise CheckpointError(
                f"{self.path}: the file is not whole: the directory at the end of its {self.size} "
                "bytes is missing, as after a broken download or copy; get it again"
            )
        _, disk, first, here, count, length, start, comment = _END.unpack_from(tail, at)
        end = tail_start + at
        if at + _END.size + comment != len(tail):
            raise self._damaged("there is something after its directory")
        locator_start = end - _LOCATOR64.size
        if locator_start >= 0:
            mark, _, end64, _ = _LOCATOR64.unpack(self._bytes(locator_start, _LOCATOR64.size))
            if mark == b"PK\x06\x07":
                if end64 + _END64.size > locator_start:
                    raise self._damaged("its directory is not where it says")
                fields = _END64.unpack(self._bytes(end64, _END64.size))
                if fields[0] != b"PK\x06\x06":
                    raise self._damaged("its directory is not where it says")
                disk, first, here, count, length, start = fields[4:]
                end = end64
        if disk or first or here != count:
            raise CheckpointError(f"{self.path}: a part of an archive in several files")
        if start + length != end:
            raise self._damaged("its directory is not where it says")
        return count, length, start

    def _name(self, raw: bytes, flags: int) -> str:
        try:
            return raw.decode("utf-8" if flags & _UTF8 else "cp437")
        except UnicodeDecodeError as error:
            raise self._damaged("the name of an entry is no text") from error

    def _place(self, name: str, fields: tuple[int, ...], extra: bytes) -> tuple[int, int]:
        """Size of an entry and where its header begins."""
        flags, method, packed, size, header = (fields[i] for i in (3, 4, 8, 9, 16))
        if flags & _ENCRYPTED:
            raise CheckpointError(f"{self.path}: the entry {name!a} is encrypted")
        if method:
            raise CheckpointError(
                f"{self.path}: the entry {name!a} is compressed, which torch.save never does; "
                "if it was packed again, unpack it and pack it without compression (zip -0)"
            )
        wide = [value == _NONE32 for value in (size, packed, header)]
        if any(wide):
            values = self._extra64(extra, sum(wide))
            size, packed, header = (
                values.pop(0) if is_wide else value
                for is_wide, value in zip(wide, (size, packed, header), strict=True)
            )
        if size != packed:
            raise self._damaged(f"the entry {name!a} has two sizes")
        return size, header

    def _extra64(self, extra: bytes, count: int) -> list[int]:
        """The 64-bit values of an entry's extra field."""
        position = 0
        while position + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, position)
            body = extra[position + 4 : position + 4 + length]
            if kind == 1 and len(body) >= 8 * count:
                return list(struct.unpack_from(f"<{count}Q", body))
            position += 4 + length
        raise self._damaged("an entry's size is missing")

    def _check(self, found: list[tuple[int, int, int, str]], end: int) -> dict[str, Entry]:
        """Entries by name: none twice, and no two that share bytes."""
        entries = {}
        ordered = sorted(found)
        stops = [header for header, *_ in ordered[1:]] + [end]
        ends: dict[str, int] = {}
        for (header, size, _, name), stop in zip(ordered, stops, strict=True):
            if header + _LOCAL.size + size > stop:
                raise self._damaged(f"the entry {name!a} overlaps another or the directory")
            if name in ends:
                raise CheckpointError(f"{self.path}: two entries have the name {name!a}")
            ends[name] = stop
        for header, size, crc, name in found:
            entries[name] = Entry(name, header, size, ends[name], crc)
        return entries
