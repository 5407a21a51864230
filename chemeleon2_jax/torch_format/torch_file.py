"""Files of `torch.save`, read without PyTorch and without running anything that they name."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zipfile import ZipInfo

from chemeleon2_jax.common.errors import CheckpointError, UserError
from chemeleon2_jax.common.inert_pickle import load
from chemeleon2_jax.common.stubs import Name, short
from chemeleon2_jax.torch_format.other_formats import describe_other
from chemeleon2_jax.torch_format.stored_zip import StoredZip
from chemeleon2_jax.torch_format.tensors import DTYPES, REBUILD, STORAGES, Storage, Tensor

_HEAD = 1024
_MAX_KEY_LENGTH = 300

# That of a model with hundreds of millions of parameters has well below 1 MB of either.
_MAX_PICKLE = 64 << 20
_MAX_OPERATIONS = 4_000_000

# A tensor may be a view that repeats what is stored; one that is larger than the file and than this
# is there to fill the memory.
_REPEATED_BYTES = 64 << 20


class TorchFile:
    """An open file; a context manager. Tensors can be read until it is closed.

    Attributes:
        path: the file.
        content: what `torch.save` was given. Dicts of every kind are dicts; tensors and parameters
            are `Tensor`, bare storages `Storage`, objects of classes `Stub`, and classes that are
            only named `Name`.
    """

    path: Path
    content: Any

    def __init__(self, path: Path, archive: StoredZip) -> None:
        """Read what an archive holds, but for the values of its tensors.

        Raises:
            CheckpointError: no file of `torch.save`, or a damaged one.
        """
        self.path = path
        self._archive = archive
        name = _find_pickle(path, list(archive.entries))
        self._root = name.removesuffix("data.pkl")
        self._checksums = self._has_checksums()
        self.swapped = self._is_swapped()
        entry = archive.entries[name]
        if entry.file_size > _MAX_PICKLE:
            raise CheckpointError(
                f"{path}: {name!a} has {entry.file_size} bytes, more than any checkpoint's"
            )
        try:
            self.content = load(
                self._read(entry),
                rebuild=REBUILD,
                refer=self._storage,
                max_operations=_MAX_OPERATIONS,
            )
        except UserError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TorchFile({str(self.path)!r})"

    def close(self) -> None:
        """Close the file; tensors that were not read cannot be read any more."""
        self._archive.close()

    def read_storage(self, key: str, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a storage from `start` on.

        Raises:
            CheckpointError: the file is damaged there, or was closed.
        """
        if not len(buffer):
            return
        entry = self._archive.entries[f"{self._root}data/{key}"]
        self._archive.read_into(entry, start, buffer)
        if len(buffer) == entry.file_size:
            self._check(entry, buffer)

    def check_view(self, tensor: Tensor) -> None:
        """Refuse to build a tensor that is far larger than what is stored.

        Raises:
            CheckpointError: it is.
        """
        if tensor.nbytes > max(self._archive.size, _REPEATED_BYTES):
            raise CheckpointError(
                f"{self.path}: a tensor of shape {tensor.shape} repeats the few values of storage "
                f"{short(tensor.storage.key)}; its {tensor.nbytes} bytes are more than the file's"
            )

    def _read(self, entry: ZipInfo) -> bytes:
        data = self._archive.read(entry)
        self._check(entry, data)
        return data

    def _check(self, entry: ZipInfo, data: bytes | memoryview) -> None:
        if self._checksums and not self._archive.matches(entry, data):
            raise CheckpointError(
                f"{self.path}: the file is damaged: the checksum of its entry {entry.filename!a} "
                "is another; get the file again"
            )

    def _small(self, name: str) -> tuple[ZipInfo, bytes] | None:
        """One of the short entries beside the pickle."""
        entry = self._archive.entries.get(f"{self._root}{name}")
        if entry is None or entry.file_size > _HEAD:
            return None
        return entry, self._archive.read(entry)

    def _has_checksums(self) -> bool:
        # PyTorch can be told not to compute them; it then writes some other number.
        found = self._small("version") or self._small("byteorder")
        return found is None or self._archive.matches(*found)

    def _is_swapped(self) -> bool:
        found = self._small("byteorder")
        order = "little" if found is None else found[1].decode("latin-1").strip()
        if order not in ("little", "big"):
            raise CheckpointError(f"{self.path}: the file is damaged: byte order {short(order)}")
        return order != sys.byteorder

    def _storage(self, reference: Any) -> Storage:
        """What stands for the bytes that a pickle refers to."""
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise CheckpointError("the pickle refers to something that is no storage")
        _, kind, key, _, numel = reference
        if not isinstance(kind, Name) or not isinstance(key, str) or type(numel) is not int:
            raise CheckpointError("the pickle is damaged: what it says of a storage")
        if len(key) > _MAX_KEY_LENGTH:
            raise CheckpointError(f"the pickle is damaged: a storage's key of {len(key)} letters")
        dtype = STORAGES.get(kind.name)
        if dtype is None:
            raise CheckpointError(f"storages of class {short(kind.name)} cannot be read")
        entry = self._archive.entries.get(f"{self._root}data/{key}")
        stored = entry.file_size if entry is not None else 0
        if numel * DTYPES[dtype].itemsize != stored:
            raise CheckpointError(
                f"storage {short(key)} should have {short(numel)} elements of {dtype}, "
                f"but the file has {stored} bytes of it; get the file again"
            )
        return Storage(key, dtype, numel, self)


def open_torch_file(path: str | Path) -> TorchFile:
    """Open a file that `torch.save` wrote (PyTorch 1.6 or later).

    Nothing in it is run, and only its pickle is read: values of tensors are read when asked for.

    Raises:
        CheckpointError: there is none, it is something else, damaged, or built to do harm.
    """
    path = Path(path)
    stream = _open(path)
    try:
        head = stream.read(_HEAD)
        if not head.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"{path}: {describe_other(head)}")
        return TorchFile(path, StoredZip(path, stream))
    except BaseException as error:
        stream.close()
        if isinstance(error, OSError | MemoryError):
            what = str(error) or type(error).__name__
            raise CheckpointError(f"{path}: it cannot be read: {what}") from error
        raise


def _open(path: Path) -> io.BufferedReader:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: it cannot be opened: {error}") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{path} is a folder; name the .ckpt file in it")
    raise CheckpointError(f"{path} is no file")


def _find_pickle(path: Path, names: list[str]) -> str:
    """Name of the pickle among the entries of an archive."""
    found = [n for n in names if n == "data.pkl" or (n.endswith("/data.pkl") and n.count("/") == 1)]
    folder = found[0].removesuffix("data.pkl") if found else ""
    if f"{folder}constants.pkl" in names or any(n.startswith(f"{folder}code/") for n in names):
        raise CheckpointError(
            f"{path}: a TorchScript program, not a checkpoint; save its state_dict with torch.save"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{path}: {len(found)} pickles in one archive: {short(found[1])}, ..."
        )
    if not found:
        what = "numpy arrays (.npz)" if names and names[0].endswith(".npy") else "something else"
        raise CheckpointError(
            f"{path}: a zip archive of {what}, not of torch.save: it has no data.pkl"
        )
    return found[0]
