"""Zip archives of uncompressed entries, as PyTorch writes them.

`zipfile` reads the directory; entries are read here, in parts, into the caller's memory, from any
thread. Compressed and overlapping entries are refused: PyTorch writes none, and with them a small
file would hold any number of bytes.
"""

from __future__ import annotations

import io
import struct
import threading
import zipfile
import zlib
from pathlib import Path

from chemeleon2_jax.common.errors import CheckpointError

# PKWARE's APPNOTE 6.3.10, sections 4.3.7 and 4.3.16.
_HEADER = struct.Struct("<4s22x2H")
_END_BYTES, _COUNTS = 22, struct.Struct("<8x2H")
_ENCRYPTED = 1 << 0


class StoredZip:
    """An open archive.

    Attributes:
        path: the file.
        size: its length in bytes.
        entries: by name, in the order of the directory.
        has_checksums: whether the directory's checksums are those of the entries.
    """

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        """Read the directory of an archive, and take over the stream.

        Raises:
            CheckpointError: the archive is not whole, or unlike any of PyTorch.
        """
        self.path = path
        self.has_checksums = False
        self._stream = stream
        self._lock = threading.Lock()
        self.size = stream.seek(0, 2)
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: the file is not whole: the directory at the end of its {self.size} bytes "
                f"is missing or damaged ({error!s:.100}), as after a broken download or copy; get "
                "it again"
            ) from error
        self._ends = self._check(archive)
        self.entries = archive.NameToInfo

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(self, name: str) -> bytes:
        """Return an entry's bytes."""
        buffer = bytearray(self.entries[name].file_size)
        self.read_into(name, 0, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a buffer with an entry's bytes from `start` on.

        Raises:
            CheckpointError: the file ends before, is damaged there, or cannot be read.
        """
        entry = self.entries[name]
        magic, *lengths = _HEADER.unpack(self._bytes(entry.header_offset, _HEADER.size))
        begin = entry.header_offset + _HEADER.size + sum(lengths)
        if magic != b"PK\x03\x04" or begin + entry.file_size > self._ends[name]:
            raise self._damaged(f"the entry {name!a} is not where the directory says")
        self._fill(begin + start, buffer)
        whole = len(buffer) == entry.file_size
        if whole and self.has_checksums and zlib.crc32(buffer) != entry.CRC:
            raise self._damaged(f"the checksum of its entry {name!a} is another")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: the file is damaged: {what}; get the file again")

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
                    # In parts: one read returns at most 2 GiB.
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

    def _check(self, archive: zipfile.ZipFile) -> dict[str, int]:
        """Return where each entry ends at the latest; names and bytes must be distinct."""
        entries = sorted(archive.filelist, key=lambda entry: entry.header_offset)
        stops = [entry.header_offset for entry in entries[1:]] + [archive.start_dir]
        ends: dict[str, int] = {}
        for entry, stop in zip(entries, stops, strict=False):  # no entries, one stop
            name = entry.filename
            if entry.flag_bits & _ENCRYPTED:
                raise CheckpointError(f"{self.path}: the entry {name!a} is encrypted")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"{self.path}: the entry {name!a} is compressed, which torch.save never does; "
                    "if it was packed again, unpack it and pack it without compression (zip -0)"
                )
            if entry.file_size != entry.compress_size:
                raise self._damaged(f"the entry {name!a} has two sizes")
            if entry.header_offset + _HEADER.size + entry.file_size > stop:
                raise self._damaged(f"the entry {name!a} overlaps another or the directory")
            if name in ends:
                raise CheckpointError(f"{self.path}: two entries have the name {name!a}")
            ends[name] = stop
        # `zipfile` reads as many entries as the directory is long.
        end = self._bytes(self.size - _END_BYTES - len(archive.comment), _COUNTS.size)
        if {*_COUNTS.unpack(end)} != {min(len(entries), 0xFFFF)}:
            raise self._damaged(f"its directory lists {len(entries)} entries, not those it counts")
        return ends
