"""Tensors of a PyTorch file: shapes and types at once, values on demand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.stubs import Name, short
from chemeleon2_jax.torch_format.stored_zip import StoredZip

DTYPES: dict[str, np.dtype[Any]] = {
    **{
        name: np.dtype(name)
        for name in (
            *("float16", "float32", "float64", "complex64", "complex128", "bool"),
            *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        )
    },
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in (
            *("bfloat16", "float8_e4m3fn", "float8_e5m2"),
            *("float8_e4m3fnuz", "float8_e5m2fnuz"),
        )
    },
}
"""PyTorch's names of element types."""

STORAGES = {
    "torch.BFloat16Storage": "bfloat16",
    "torch.BoolStorage": "bool",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.ComplexFloatStorage": "complex64",
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.ShortStorage": "int16",
    "torch.storage.UntypedStorage": "uint8",
    "torch.UntypedStorage": "uint8",
}
"""Classes of storages and their element types; an untyped one holds bytes."""

_MAX_DIMENSIONS = 64
_INT64 = 1 << 63

# A tensor may be a view that repeats its elements. One that is larger than the file and than this
# is there to fill the memory.
_REPEATED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in an archive.

    Attributes:
        key: its number, as text.
        dtype: PyTorch's name of the element type.
        numel: number of elements.
        archive, name: where its bytes are.
        swapped: whether an element's bytes come in the other order than this machine's.
    """

    key: str
    dtype: str
    numel: int
    archive: StoredZip
    name: str
    swapped: bool

    def __repr__(self) -> str:
        return f"Storage({self.key!a}, {self.dtype}, {self.numel})"

    def __setstate__(self, state: Any) -> None:
        """Drop attributes that a pickle sets: these were checked."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage. Nothing is read before `read`.

    Attributes:
        storage: its elements; tensors with the same `storage.key` share memory.
        dtype: PyTorch's name of the element type, such as "bfloat16".
        shape: lengths of the axes.
        strides: steps between neighbours along each axis, in elements.
        offset: of the first element in the storage, in elements.
    """

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {self.shape})"

    def __setstate__(self, state: Any) -> None:
        """Drop attributes that a pickle sets: these were checked."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array that `read` returns."""
        return self.size * DTYPES[self.dtype].itemsize

    @property
    def span(self) -> int:
        """Number of elements of the storage from the first in the view to the last."""
        if not self.size:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def read(self) -> np.ndarray:
        """Return the values as a new array in C order.

        Raises:
            CheckpointError: the file is damaged there or closed, or the memory does not suffice.
        """
        archive = self.storage.archive
        if self.nbytes > max(archive.size, _REPEATED_BYTES):
            raise CheckpointError(
                f"{archive.path}: a tensor of shape {self.shape} repeats the few values of storage "
                f"{short(self.storage.key)}: {self.nbytes} bytes are more than the whole file has"
            )
        try:
            return self._read(DTYPES[self.dtype])
        except MemoryError as error:
            raise CheckpointError(
                f"{archive.path}: no memory for a tensor of {self.nbytes} bytes"
            ) from error

    def _read(self, dtype: np.dtype[Any]) -> np.ndarray:
        flat = np.empty(self.span * dtype.itemsize, np.uint8)
        if flat.size:
            start = self.offset * dtype.itemsize
            self.storage.archive.read_into(self.storage.name, start, flat.data)
        if self.storage.swapped:
            unit = dtype.itemsize // (2 if dtype.kind == "c" else 1)
            flat.view(f"u{unit}").byteswap(inplace=True)
        # Any byte but 0 is true; numpy counts on true being 1.
        values = flat != 0 if dtype == np.bool_ else flat.view(dtype)
        if values.size == self.size and self.strides == contiguous_strides(self.shape):
            return values.reshape(self.shape)
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, strides).copy(order="C")


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of an array in C order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *, dtype: str = "") -> Tensor:
    """Return a view of a storage.

    Raises:
        CheckpointError: the view does not lie within the storage, or an argument is no part of one.
    """
    if not isinstance(storage, Storage):
        raise CheckpointError(f"a tensor's storage is {short(storage)}")
    dtype = dtype or storage.dtype
    lengths, steps = _integers(shape, "shape"), _integers(strides, "strides")
    (first,) = _integers((offset,), "offset")
    if len(lengths) != len(steps) or len(lengths) > _MAX_DIMENSIONS:
        raise CheckpointError(f"a tensor has {len(lengths)} lengths and {len(steps)} strides")
    itemsize = DTYPES[dtype].itemsize
    # Lengths of 0 count as 1 here, as in numpy.
    if math.prod(max(n, 1) for n in lengths) * itemsize >= _INT64:
        raise CheckpointError(f"a tensor has the shape {lengths}, more than any memory holds")
    tensor = Tensor(storage, dtype, lengths, steps, first)
    stored = storage.numel * DTYPES[storage.dtype].itemsize
    if (first + tensor.span) * itemsize > stored:
        raise CheckpointError(
            f"a tensor of shape {lengths}, strides {steps} and offset {first} reaches beyond its "
            f"storage {short(storage.key)} of {stored} bytes"
        )
    return tensor


def _integers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise CheckpointError(f"a tensor's {what} is {short(values)}")
    for value in values[: _MAX_DIMENSIONS + 1]:
        if type(value) is not int or not 0 <= value < _INT64:
            raise CheckpointError(f"a tensor's {what} has {short(value)}")
    return values


# --- PyTorch's functions that a pickle calls for a tensor; NotImplemented makes a stub ------------


def _tensor(args: tuple[Any, ...]) -> Any:
    """Arguments: storage, offset, shape, strides, requires_grad, hooks, and a dict that marks
    conjugate and negated views.
    """
    if len(args) < 4 or (len(args) > 6 and args[6]):
        return NotImplemented
    return make_tensor(*args[:4])


def _tensor_of_dtype(args: tuple[Any, ...]) -> Any:
    """As above, for types without a storage class: the type comes after the hooks."""
    if len(args) < 7 or not isinstance(args[6], Name) or (len(args) > 7 and args[7]):
        return NotImplemented
    return make_tensor(*args[:4], dtype=dtype_of(args[6]))


def dtype_of(name: Name) -> str:
    """Return the element type of a name such as `torch.float32`."""
    dtype = name.name.removeprefix("torch.")
    if dtype not in DTYPES:
        raise CheckpointError(f"tensors of type {short(name.name)} cannot be read")
    return dtype


def _parameter(args: tuple[Any, ...]) -> Any:
    return args[0] if args and isinstance(args[0], Tensor) else NotImplemented


def _subclass(args: tuple[Any, ...]) -> Any:
    """Arguments: the function that makes a plain tensor, the class, the function's arguments."""
    function = args[0].name if args and isinstance(args[0], Name) else ""
    if len(args) < 3 or function not in _PLAIN or not isinstance(args[2], tuple):
        return NotImplemented
    return _PLAIN[function](args[2])


def _size(args: tuple[Any, ...]) -> Any:
    if not args:
        return ()
    # Nothing else: a file could have one long list copied again and again.
    return args[0] if isinstance(args[0], tuple) else NotImplemented


_PLAIN = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
}

REBUILD = {
    **_PLAIN,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _size,
}
"""The functions of PyTorch whose results are rebuilt, by name; all others stay stubs."""
