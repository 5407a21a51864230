"""Writes archives in PyTorch's layout by hand: valid, damaged and hostile ones."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format.tensors import Tensor
from chemeleon2_jax.torch_format.torch_file import open_torch_file


@dataclass(frozen=True)
class Global:
    """A class or function, by name."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call of a function."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Built:
    """An object with a state."""

    made: Any
    state: Any


@dataclass(frozen=True)
class Stored:
    """A reference to a storage."""

    cls: str
    key: Any
    numel: Any


@dataclass(frozen=True)
class Raw:
    """Bytes of operations."""

    code: bytes


def operations(value: Any) -> bytes:
    """Return operations that put a value on the stack; any integer, any name."""
    match value:
        case Raw(code):
            return code
        case Global(name):
            module, _, member = name.rpartition(".")
            return f"c{module}\n{member}\n".encode()
        case Call(name, args):
            return operations(Global(name)) + operations(args) + b"R"
        case Built(made, state):
            return operations(made) + operations(state) + b"b"
        case Stored(cls, key, numel):
            return operations(("storage", Global(cls), key, "cpu", numel)) + b"Q"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            length = value.bit_length() // 8 + 1
            code = value.to_bytes(length, "little", signed=True)
            return b"\x8b" + struct.pack("<i", length) + code
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(operations, value)) + b"t"
        case list():
            return b"](" + b"".join(map(operations, value)) + b"e"
        case dict():
            return b"}(" + b"".join(operations(x) for kv in value.items() for x in kv) + b"u"
    raise TypeError(value)


def pickled(value: Any) -> bytes:
    """Return a pickle of a value."""
    return b"\x80\x02" + operations(value) + b"."


def tensor(
    storage: Any,
    shape: Any,
    strides: Any,
    *,
    offset: Any = 0,
    function: str = "torch._utils._rebuild_tensor_v2",
) -> Call:
    """Return the call of a tensor's function."""
    hooks = Call("collections.OrderedDict", ())
    return Call(function, (storage, offset, shape, strides, False, hooks))


def pack(
    path: Path,
    content: Any,
    storages: Mapping[str, bytes] | None = None,
    *,
    entries: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    byteorder: str = "little",
) -> Path:
    """Write an archive of a value or a pickle, with storages and further entries."""
    data = content if isinstance(content, bytes) else pickled(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)
        for key, values in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", values)
        archive.writestr("archive/version", "3\n")
        for name, values in (entries or {}).items():
            archive.writestr(name, values)
    return path


FLOATS = np.arange(12, dtype=np.float32)
STORED = Stored("torch.FloatStorage", "0", 12)
STORAGES = {"0": FLOATS.tobytes()}
"""Twelve numbers, and the reference to them."""


def refuse(path: Path, match: str) -> None:
    """Check that opening a file raises a CheckpointError that names it."""
    with pytest.raises(CheckpointError, match=match) as caught:
        open_torch_file(path)
    assert str(path) in str(caught.value)


def read(path: Path) -> Any:
    """Return the content of a file, tensors as arrays."""
    with open_torch_file(path) as file:
        return _values(file.content)


def _values(content: Any) -> Any:
    if isinstance(content, Tensor):
        values = content.read()
        assert values.flags.c_contiguous
        assert values.flags.owndata or values.base is not None
        assert (values.shape, values.nbytes) == (content.shape, content.nbytes)
        return values
    if isinstance(content, dict):
        return {key: _values(value) for key, value in content.items()}
    return content
