"""Files of `torch.save`, written without PyTorch.

They hold dicts, lists, tuples, plain values and tensors: `torch.load(path, weights_only=True)`
reads them. Arrays are written one by one; only those that are not contiguous are copied.
"""

from __future__ import annotations

import os
import struct
import sys
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from chemeleon2_jax.common.atomic_files import replacing
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format.tensors import DTYPES, STORAGES, contiguous_strides

_ROOT = "archive"
_ALIGNMENT = 64
_MAX_DEPTH = 100

# Of a zip's local header: its fixed part, the field of 64-bit sizes, the head of a field, and the
# kind of PyTorch's padding field.
_HEADER_BYTES = 30
_WIDE_BYTES = 20
_FIELD_BYTES = 4
_PADDING_ID = 0x4246
_WIDE_FROM = 1 << 30

_STORAGE_OF = {dtype: cls for cls, dtype in STORAGES.items() if "Untyped" not in cls}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_torch_file(path: str | Path, content: Any) -> None:
    """Write a file that `torch.load(path, weights_only=True)` reads; replace it once it is whole.

    Args:
        path: the file.
        content: nested dicts (an OrderedDict stays one), lists and tuples of text, numbers, None
            and arrays (numpy's or JAX's). Arrays become tensors, each with its own storage;
            numpy's scalars become plain numbers.

    Raises:
        CheckpointError: a value has another type, or the file cannot be written.
    """
    path = Path(path)
    pickler = _Pickler()
    try:
        data = pickler.dump(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from None
    try:
        with replacing(path) as temporary, temporary.open("wb") as stream:
            with zipfile.ZipFile(stream, "w") as archive:
                write = partial(_write_entry, archive, stream)
                write("data.pkl", data)
                write(".format_version", b"1")
                write(".storage_alignment", str(_ALIGNMENT).encode())
                write("byteorder", sys.byteorder.encode())
                for key, array in enumerate(pickler.arrays):
                    write(f"data/{key}", _bytes_of(array))
                write("version", b"3\n")
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def _bytes_of(array: Any) -> memoryview:
    """The values of an array in C order, copied only if they are in another order."""
    values = np.ascontiguousarray(np.asarray(array))
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return values.reshape(-1).view(np.uint8).data


def _write_entry(
    archive: zipfile.ZipFile, stream: BinaryIO, name: str, data: bytes | memoryview
) -> None:
    """Add an entry whose data begin at a multiple of 64 bytes."""
    # Always the same date: the same content gives the same file.
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    wide = len(data) >= _WIDE_FROM
    fixed = _HEADER_BYTES + len(info.filename) + _WIDE_BYTES * wide + _FIELD_BYTES
    padding = -(stream.tell() + fixed) % _ALIGNMENT
    info.extra = struct.pack("<2H", _PADDING_ID, padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=wide) as entry:
        entry.write(data)


class _Pickler:
    """Writes protocol 2 with the operations and names that `weights_only=True` permits."""

    def __init__(self) -> None:
        self.arrays: list[Any] = []
        self._parts: list[bytes] = []

    def dump(self, content: Any) -> bytes:
        self._add(b"\x80\x02")
        self._value(content, ())
        self._add(b".")
        return b"".join(self._parts)

    def _add(self, *parts: bytes) -> None:
        self._parts.extend(parts)

    def _value(self, value: Any, path: tuple[str, ...]) -> None:
        if len(path) > _MAX_DEPTH:
            raise CheckpointError(f"it is nested deeper than {_MAX_DEPTH}, or holds itself")
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, dict):
            self._dict(value, path)
        elif isinstance(value, list):
            self._add(b"](")
            self._items(value, path)
            self._add(b"e")
        elif isinstance(value, tuple):
            self._add(b"(")
            self._items(value, path)
            self._add(b"t")
        elif value is None or isinstance(value, bool | int | float | str):
            self._plain(value, path)
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            self._array(value, path)
        else:
            raise CheckpointError(f"{_at(path)} is a {type(value).__name__}")

    def _items(self, values: list[Any] | tuple[Any, ...], path: tuple[str, ...]) -> None:
        for i, value in enumerate(values):
            self._value(value, (*path, str(i)))

    def _dict(self, values: dict[Any, Any], path: tuple[str, ...]) -> None:
        ordered = isinstance(values, OrderedDict)
        self._add(b"ccollections\nOrderedDict\n)R(" if ordered else b"}(")
        for key, value in values.items():
            if not isinstance(key, str | int | float):
                raise CheckpointError(f"{_at(path)} has a key that is a {type(key).__name__}")
            self._plain(key, path)
            self._value(value, (*path, str(key)))
        self._add(b"u")

    def _plain(self, value: Any, path: tuple[str, ...]) -> None:
        if value is None:
            self._add(b"N")
        elif isinstance(value, bool):
            self._add(b"\x88" if value else b"\x89")
        elif isinstance(value, int):
            self._int(int(value), path)
        elif isinstance(value, float):
            self._add(struct.pack(">cd", b"G", value))
        else:
            text = value.encode("utf-8", "surrogatepass")
            self._add(struct.pack("<cI", b"X", len(text)), text)

    def _int(self, value: int, path: tuple[str, ...]) -> None:
        if 0 <= value < 256:
            self._add(struct.pack("<cB", b"K", value))
        elif -(1 << 31) <= value < 1 << 31:
            self._add(struct.pack("<ci", b"J", value))
        else:
            length = value.bit_length() // 8 + 1
            if length > 255:
                raise CheckpointError(f"{_at(path)} is an integer of {length} bytes")
            self._add(b"\x8a", bytes([length]), value.to_bytes(length, "little", signed=True))

    def _array(self, array: Any, path: tuple[str, ...]) -> None:
        """Call of a tensor's function: storage, offset, shape, strides, no gradient, no hooks."""
        dtype = _DTYPE_NAMES.get(np.dtype(array.dtype).newbyteorder("="))
        if dtype is None:
            raise CheckpointError(f"{_at(path)} is of type {array.dtype}, which PyTorch has not")
        storage = _STORAGE_OF.get(dtype)
        shape = tuple(int(n) for n in array.shape)
        numel = int(np.prod(shape, dtype=np.int64))
        version, cls = ("v2", storage) if storage else ("v3", "torch.storage.UntypedStorage")
        self._name(f"torch._utils._rebuild_tensor_{version}")
        self._add(b"((")
        self._plain("storage", path)
        self._name(cls or "")
        self._plain(str(len(self.arrays)), path)
        self._plain("cpu", path)
        self._int(numel if storage else numel * DTYPES[dtype].itemsize, path)
        self._add(b"tQK\x00")
        self._value(shape, path)
        self._value(contiguous_strides(shape), path)
        self._add(b"\x89ccollections\nOrderedDict\n)R")
        if not storage:
            self._name(f"torch.{dtype}")
        self._add(b"tR")
        self.arrays.append(array)

    def _name(self, name: str) -> None:
        module, _, member = name.rpartition(".")
        self._add(f"c{module}\n{member}\n".encode())


def _at(path: tuple[str, ...]) -> str:
    return ascii("".join(f"[{part}]" for part in path)) if path else "the content"
