"""Files of `torch.save`, written without PyTorch.

They hold dicts, lists, tuples, plain values and tensors: `torch.load(path, weights_only=True)`
reads them. Arrays are written one by one; only those that are not contiguous are copied.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
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
    arrays: list[Any] = []
    try:
        data = b"".join((b"\x80\x02", *_operations(content, (), arrays), b"."))
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
                for key, array in enumerate(arrays):
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


def _operations(value: Any, path: tuple[str, ...], arrays: list[Any]) -> Iterator[bytes]:
    """Yield the operations of a value, those that `weights_only=True` permits; collect its arrays.

    `path` are the keys of the value in the content.
    """
    if len(path) > _MAX_DEPTH:
        raise CheckpointError(f"it is nested deeper than {_MAX_DEPTH}, or holds itself")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        yield b"ccollections\nOrderedDict\n)R(" if isinstance(value, OrderedDict) else b"}("
        for key, item in value.items():
            if not isinstance(key, str | int | float):
                raise CheckpointError(f"{_at(path)} has a key that is a {type(key).__name__}")
            yield _plain(key, path)
            yield from _operations(item, (*path, str(key)), arrays)
        yield b"u"
    elif isinstance(value, list | tuple):
        yield b"](" if isinstance(value, list) else b"("
        for i, item in enumerate(value):
            yield from _operations(item, (*path, str(i)), arrays)
        yield b"e" if isinstance(value, list) else b"t"
    elif value is None or isinstance(value, bool | int | float | str):
        yield _plain(value, path)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        yield from _tensor(value, path, str(len(arrays)))
        arrays.append(value)
    else:
        raise CheckpointError(f"{_at(path)} is a {type(value).__name__}")


def _plain(value: Any, path: tuple[str, ...]) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return struct.pack(">cd", b"G", value)
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return struct.pack("<cI", b"X", len(text)) + text
    value = int(value)  # not an IntEnum
    if 0 <= value < 256:
        return struct.pack("<cB", b"K", value)
    if -(1 << 31) <= value < 1 << 31:
        return struct.pack("<ci", b"J", value)
    length = value.bit_length() // 8 + 1
    if length > 255:
        raise CheckpointError(f"{_at(path)} is an integer of {length} bytes")
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def _tensor(array: Any, path: tuple[str, ...], key: str) -> Iterator[bytes]:
    """Call of a tensor's function: storage, offset, shape, strides, no gradient, no hooks."""
    dtype = _DTYPE_NAMES.get(np.dtype(array.dtype).newbyteorder("="))
    if dtype is None:
        raise CheckpointError(f"{_at(path)} is of type {array.dtype}, which PyTorch has not")
    storage = _STORAGE_OF.get(dtype)
    shape = tuple(int(n) for n in array.shape)
    numel = math.prod(shape)
    # Types without a storage class have untyped storages, whose elements are bytes.
    yield _name(f"torch._utils._rebuild_tensor_{'v2' if storage else 'v3'}") + b"(("
    yield _plain("storage", path) + _name(storage or "torch.storage.UntypedStorage")
    yield _plain(key, path) + _plain("cpu", path)
    yield _plain(numel if storage else numel * DTYPES[dtype].itemsize, path) + b"tQK\x00"
    for values in (shape, contiguous_strides(shape)):
        yield from _operations(values, path, [])
    yield b"\x89ccollections\nOrderedDict\n)R"
    yield b"tR" if storage else _name(f"torch.{dtype}") + b"tR"


def _name(name: str) -> bytes:
    module, _, member = name.rpartition(".")
    return f"c{module}\n{member}\n".encode()


def _at(path: tuple[str, ...]) -> str:
    return ascii("".join(f"[{part}]" for part in path)) if path else "the content"
