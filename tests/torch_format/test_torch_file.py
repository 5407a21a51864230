"""Files of torch.save are read; for any other file, the error says what it is."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.stubs import Stub
from chemeleon2_jax.torch_format.stored_zip import StoredZip
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from tests.torch_format.archives import (
    FLOATS,
    STORAGES,
    STORED,
    Call,
    Global,
    Stored,
    pack,
    pickled,
    read,
    refuse,
    tensor,
)

# --- content --------------------------------------------------------------------------------------


def test_views_of_one_storage(tmp_path) -> None:
    content = {
        "all": tensor(STORED, (3, 4), (4, 1)),
        "transposed": tensor(STORED, (4, 3), (1, 4)),
        "part": tensor(STORED, (2, 2), (4, 1), offset=5),
        "column": tensor(STORED, (3,), (4,), offset=2),
        "expanded": tensor(STORED, (3, 2), (0, 1), offset=10),
        "scalar": tensor(STORED, (), (), offset=7),
        "empty": tensor(STORED, (0, 5), (5, 1), offset=12),
        "old": tensor(STORED, (2,), (1,), function="torch._utils._rebuild_tensor"),
    }
    arrays = read(pack(tmp_path / "a.ckpt", content, STORAGES))
    square = FLOATS.reshape(3, 4)
    expected = {
        "all": square,
        "transposed": square.T,
        "part": square[1:, 1:3],
        "column": square[:, 2],
        "expanded": np.broadcast_to(FLOATS[10:], (3, 2)),
        "scalar": FLOATS[7],
        "empty": np.zeros((0, 5), np.float32),
        "old": FLOATS[:2],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)
        assert arrays[name].dtype == np.float32
    arrays["part"][:] = 0
    assert arrays["all"].sum() == FLOATS.sum()


def test_parameters_and_subclasses(tmp_path) -> None:
    plain = tensor(STORED, (12,), (1,))
    hooks = Call("collections.OrderedDict", ())
    function = Global("torch._utils._rebuild_tensor_v2")
    content = {
        "parameter": Call("torch._utils._rebuild_parameter", (plain, True, hooks)),
        "state": Call("torch._utils._rebuild_parameter_with_state", (plain, True, hooks, {})),
        "subclass": Call(
            "torch._tensor._rebuild_from_type_v2", (function, Global("a.Mine"), plain.args, {})
        ),
    }
    for values in read(pack(tmp_path / "a.ckpt", content, STORAGES)).values():
        np.testing.assert_array_equal(values, FLOATS)


def test_what_is_no_plain_tensor_is_a_stub(tmp_path) -> None:
    plain = tensor(STORED, (12,), (1,))
    hooks = Call("collections.OrderedDict", ())
    content = {
        "conjugate": Call("torch._utils._rebuild_tensor_v2", (*plain.args, {"conj": True})),
        "sparse": Call("torch._utils._rebuild_sparse_tensor", (1, (plain, plain))),
        "parameter": Call("torch._utils._rebuild_parameter", (3, True, hooks)),
        "short": Call("torch._utils._rebuild_tensor_v2", (1,)),
        "v3": Call("torch._utils._rebuild_tensor_v3", plain.args),
        "nested": Call(
            "torch._tensor._rebuild_from_type_v2",
            (Global("torch._tensor._rebuild_from_type_v2"), Global("a.Mine"), (1, 2, 3), {}),
        ),
        "size": Call("torch.Size", (3,)),
        "size of a list": Call("torch.Size", ([3, 4],)),
        "device": Call("torch.device", ("cpu",)),
    }
    with open_torch_file(pack(tmp_path / "a.ckpt", content, STORAGES)) as file:
        assert list(file.content) == list(content)
        assert all(isinstance(value, Stub) for value in file.content.values())
        assert file.content["device"].args == ("cpu",)
    sizes = [Call("torch.Size", ((2, 3),)), Call("torch.Size", ())]
    assert read(pack(tmp_path / "b.ckpt", sizes)) == [(2, 3), ()]


def test_byte_order(tmp_path) -> None:
    values = np.array([1 + 2j, 3 - 4j], np.complex64)
    halves = np.array([1.5, -2.25], ml_dtypes.bfloat16)
    content = {
        "complex": tensor(Stored("torch.ComplexFloatStorage", "c", 2), (2,), (1,)),
        "half": tensor(Stored("torch.BFloat16Storage", "h", 2), (2,), (1,)),
        "bool": tensor(Stored("torch.BoolStorage", "b", 3), (3,), (1,)),
    }
    storages = {
        "c": values.view(np.float32).byteswap().tobytes(),
        "h": halves.view(np.uint16).byteswap().tobytes(),
        "b": b"\x00\x01\x07",
    }
    arrays = read(pack(tmp_path / "a.ckpt", content, storages, byteorder="big"))
    np.testing.assert_array_equal(arrays["complex"], values)
    np.testing.assert_array_equal(arrays["half"], halves)
    assert arrays["bool"].tolist() == [False, True, True]
    assert arrays["bool"].view(np.uint8).tolist() == [0, 1, 1]
    refuse(pack(tmp_path / "b.ckpt", content, storages, byteorder="odd"), "byte order 'odd'")


def test_checksums_that_were_not_computed(tmp_path) -> None:
    """PyTorch can leave them out (`set_crc32_options`); its arbitrary numbers are not checked."""
    path = pack(tmp_path / "a.ckpt", tensor(STORED, (12,), (1,)), STORAGES)
    with zipfile.ZipFile(path) as archive:
        real = {info.filename: struct.pack("<L", info.CRC) for info in archive.infolist()}
    damaged = path.read_bytes()
    for crc in real.values():
        damaged = damaged.replace(crc, b"abcd")
    path.write_bytes(damaged)
    np.testing.assert_array_equal(read(path), FLOATS)


def test_lazy(tmp_path) -> None:
    """Only the view of a tensor is read, and only from an open file."""
    big = np.arange(1_000_000, dtype=np.int64)
    storage = Stored("torch.LongStorage", "0", big.size)
    content = {"all": tensor(storage, (1_000_000,), (1,)), "one": tensor(storage, (1,), (1,))}
    path = pack(tmp_path / "a.ckpt", content, {"0": big.tobytes()})
    with open_torch_file(path) as file:
        assert repr(file) == f"TorchFile('{path}')"
        one, everything = file.content["one"], file.content["all"]
        assert repr(everything) == "Tensor(int64, (1000000,))"
        assert everything.storage.key == one.storage.key
        read_bytes = []
        original = StoredZip.read_into

        def record(self: Any, name: str, start: int, buffer: memoryview) -> None:
            read_bytes.append((start, len(buffer)))
            original(self, name, start, buffer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoredZip, "read_into", record)
            assert one.read().tolist() == [0]
        assert read_bytes == [(0, 8)]
        with path.open("r+b") as stream:
            stream.truncate(1000)
        with pytest.raises(CheckpointError, match="it ends at byte"):
            everything.read()
    with pytest.raises(CheckpointError, match="closed"):
        one.read()


def test_closed_when_refused(tmp_path) -> None:
    path = pack(tmp_path / "a.ckpt", b"\x80\x02")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        refuse(path, "damaged")
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after == before


# --- other files ----------------------------------------------------------------------------------


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickles"))
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.arange(3))
    return stream.getvalue()


def _safetensors() -> bytes:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"x", "does not begin as a zip"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before 1.6"),
        (_safetensors(), "safetensors"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b'{"error": "Invalid username or password."}', "JSON"),
        (_tar(), "tar archive"),
        (b"\x1f\x8b" + bytes(50), "gzip"),
        (pickled({"state_dict": {}}), "plain pickle"),
        (_npz(), "numpy arrays"),
        (b"\x93NUMPY\x01\x00", "npy"),
        (b"PK\x05\x06" + bytes(18), "empty zip"),
        (b"PK\x03\x04" + bytes(200), "not whole"),
        (b"PK\x03\x04", "not whole"),
    ],
)
def test_other_files(tmp_path, content: bytes, match: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    refuse(path, match)


def test_no_file(tmp_path) -> None:
    refuse(tmp_path / "absent.ckpt", "No such file")
    refuse(tmp_path, "folder")
    refuse(tmp_path / ("a" * 5000), "cannot be opened")
    with pytest.raises(CheckpointError, match="null"):
        open_torch_file("a\0b")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "not a regular file")


def test_renamed_file_opens(tmp_path) -> None:
    assert read(pack(tmp_path / "model.safetensors", {"a": 1})) == {"a": 1}
