"""Files of `torch.save`, read without PyTorch and without running anything that they name."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError, UserError
from chemeleon2_jax.common.inert_pickle import load
from chemeleon2_jax.common.stubs import Name, short
from chemeleon2_jax.torch_format.other_formats import describe_other
from chemeleon2_jax.torch_format.stored_zip import StoredZip
from chemeleon2_jax.torch_format.tensors import DTYPES, REBUILD, STORAGES, Storage

_HEAD = 1024
_MAX_KEY_LENGTH = 300

# The pickle of a model with hundreds of millions of parameters has well below 1 MB.
_MAX_PICKLE = 64 << 20
_MAX_OPERATIONS = 4_000_000


class TorchFile(AbstractContextManager["TorchFile"]):
    """An open file; a context manager. Tensors can be read until it is closed.

    Attributes:
        path: the file.
        content: argument of `torch.save`. Tensors and parameters are `Tensor`, bare storages
            `Storage`, and the rest is as `inert_pickle.load` returns it.
    """

    path: Path
    content: Any

    def __init__(self, archive: StoredZip) -> None:
        """Read the pickle of an archive.

        Raises:
            CheckpointError: the archive is not of `torch.save`, damaged, or built to do harm.
        """
        self.path = archive.path
        self._archive = archive
        pickle = _find_pickle(self.path, list(archive.entries))
        self._root = pickle.removesuffix("data.pkl")
        self._swapped = self._is_swapped()
        archive.has_checksums = self._has_checksums()
        size = archive.entries[pickle].file_size
        if size > _MAX_PICKLE:
            raise CheckpointError(
                f"{self.path}: {pickle!a} has {size} bytes, more than any model's"
            )
        try:
            self.content = load(
                archive.read(pickle),
                rebuild=REBUILD,
                refer=self._storage,
                max_operations=_MAX_OPERATIONS,
            )
        except UserError as error:
            if str(self.path) in str(error):
                raise
            raise CheckpointError(f"{self.path}: {error}") from error

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TorchFile({str(self.path)!r})"

    def close(self) -> None:
        """Close the file: its tensors cannot be read any more."""
        self._archive.close()

    def _small(self, name: str) -> bytes | None:
        """A short entry beside the pickle; None if it is missing or long."""
        entry = self._archive.entries.get(f"{self._root}{name}")
        if entry is None or entry.file_size > _HEAD:
            return None
        return self._archive.read(entry.filename)

    def _has_checksums(self) -> bool:
        # PyTorch can be told not to compute them; it then writes arbitrary numbers.
        for name in ("version", "byteorder"):
            data = self._small(name)
            if data is not None:
                return zlib.crc32(data) == self._archive.entries[f"{self._root}{name}"].CRC
        return True

    def _is_swapped(self) -> bool:
        order = (self._small("byteorder") or b"little").decode("latin-1").strip()
        if order not in ("little", "big"):
            raise CheckpointError(f"{self.path}: the file is damaged: byte order {short(order)}")
        return order != sys.byteorder

    def _storage(self, reference: Any) -> Storage:
        """The storage that a reference of the pickle stands for."""
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise CheckpointError("the pickle has a reference to something that is no storage")
        _, kind, key, _, numel = reference
        if not isinstance(kind, Name) or not isinstance(key, str) or type(numel) is not int:
            raise CheckpointError("the pickle is damaged: a reference to a storage has wrong types")
        if len(key) > _MAX_KEY_LENGTH:
            raise CheckpointError(f"the pickle is damaged: a storage's key of {len(key)} letters")
        dtype = STORAGES.get(kind.name)
        if dtype is None:
            raise CheckpointError(f"storages of class {short(kind.name)} cannot be read")
        entry = self._archive.entries.get(f"{self._root}data/{key}")
        name, stored = (entry.filename, entry.file_size) if entry else ("", 0)
        if numel * DTYPES[dtype].itemsize != stored:
            raise CheckpointError(
                f"storage {short(key)} should have {short(numel)} elements of {dtype}, "
                f"but the file has {stored} bytes of it; get the file again"
            )
        return Storage(key, dtype, numel, self._archive, name, self._swapped)


def open_torch_file(path: str | Path) -> TorchFile:
    """Open a file of `torch.save` (PyTorch 1.6 or later).

    Nothing in it is run. Only its pickle is read; `Tensor.read` reads values.

    Raises:
        CheckpointError: the file is missing, of another kind, damaged, or built to do harm.
    """
    path = Path(path)
    stream = _open(path)
    try:
        head = stream.read(_HEAD)
        if not head.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"{path}: {describe_other(head)}")
        return TorchFile(StoredZip(path, stream))
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
    raise CheckpointError(f"{path} is not a regular file")


def _find_pickle(path: Path, names: list[str]) -> str:
    """Name of the pickle among the entries of an archive."""
    pickles = [n for n in names if re.fullmatch(r"([^/]*/)?data\.pkl", n)]
    folder = pickles[0].removesuffix("data.pkl") if pickles else ""
    if f"{folder}constants.pkl" in names or any(n.startswith(f"{folder}code/") for n in names):
        raise CheckpointError(
            f"{path}: a TorchScript program, not a checkpoint; save its state_dict with torch.save"
        )
    if len(pickles) > 1:
        raise CheckpointError(f"{path}: {len(pickles)} pickles in one archive, not one")
    if not pickles:
        what = "numpy arrays (.npz)" if names and names[0].endswith(".npy") else "something else"
        raise CheckpointError(
            f"{path}: a zip archive of {what}, not of torch.save: it has no data.pkl"
        )
    return pickles[0]
