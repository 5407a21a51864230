"""Damaged and hostile files raise a CheckpointError that names them, within bounds."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from tests.torch_format.archives import (
    STORAGES,
    STORED,
    Built,
    Call,
    Global,
    Stored,
    pack,
    tensor,
)
from tests.torch_format.walk import visit


def refuse(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        open_torch_file(path)
    assert str(path) in str(caught.value)


# --- damaged and hostile files --------------------------------------------------------------------


def test_every_truncation_is_noticed(tmp_path) -> None:
    whole = pack(tmp_path / "a.ckpt", {"a": tensor(STORED, (12,), (1,))}, STORAGES).read_bytes()
    path = tmp_path / "b.ckpt"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refuse(path, "empty|not whole|does not begin")


def test_archives_that_torch_does_not_write(tmp_path) -> None:
    path = tmp_path / "a.ckpt"
    refuse(pack(path, {"a": "a" * 999}, compression=zipfile.ZIP_DEFLATED), "compressed")
    refuse(pack(path, {}, entries={"archive/constants.pkl": b""}), "TorchScript")
    refuse(pack(path, {}, entries={"archive/code/a.py": b""}), "TorchScript")
    refuse(pack(path, {}, entries={"other/data.pkl": b""}), "2 pickles")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b/data.pkl", b"")
    refuse(path, "something else, not of torch.save")
    with pytest.warns(UserWarning, match="Duplicate name"):
        pack(path, {}, entries={"archive/data.pkl": b""})
    refuse(path, "two entries have the name")
    pack(path, {})
    encrypted = path.read_bytes().replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    )
    path.write_bytes(encrypted)
    refuse(path, "encrypted")


def test_too_long_pickles(tmp_path) -> None:
    refuse(pack(tmp_path / "a.ckpt", b"N" * 4_000_001 + b"."), "4000000 bytes of operations")
    refuse(pack(tmp_path / "a.ckpt", b"N0" * 40_000_000), "80000000 bytes, more than any")


def test_no_entries(tmp_path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"PK\x03\x04" + b"PK\x05\x06" + bytes(18))
    refuse(path, "damaged|something else")


def test_zip_bomb(tmp_path) -> None:
    """256 MB of zeros in a few hundred kB."""
    path = tmp_path / "a.ckpt"
    storage = Stored("torch.ByteStorage", "0", 1 << 28)
    pack(
        path,
        tensor(storage, (1 << 28,), (1,)),
        {"0": bytes(1 << 28)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 1 << 20
    refuse(path, "compressed")


def _edit(path: Path, name: str, field: int, value: int) -> None:
    """Overwrite four bytes of an entry's line in the directory of an archive."""
    data = bytearray(path.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + field : at + field + 4] = struct.pack("<L", value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        (20, 47, "two sizes"),
        (24, 47, "two sizes"),
        (42, 3, "overlaps|not where"),
        (42, 0, "overlaps"),
        (42, 1 << 31, "overlaps"),
        (24, 0xFFFFFFFF, "two sizes"),
        (28, 0xFFFF, "directory"),
    ],
)
def test_directory_is_checked(tmp_path, field: int, value: int, match: str) -> None:
    path = pack(tmp_path / "a.ckpt", {"a": tensor(STORED, (12,), (1,))}, STORAGES)
    _edit(path, "archive/data/0", field, value)
    refuse(path, match)


def test_overlapping_entries(tmp_path) -> None:
    path = pack(tmp_path / "a.ckpt", {"a": 1}, {"0": bytes(100), "1": bytes(100)})
    for field in (20, 24):
        _edit(path, "archive/data/0", field, 180)
    refuse(path, "overlaps")


@pytest.mark.parametrize("at", [8, 10, 12, 16])
def test_end_of_directory_is_checked(tmp_path, at: int) -> None:
    path = pack(tmp_path / "a.ckpt", {"a": 1})
    data = bytearray(path.read_bytes())
    data[len(data) - 22 + at] += 1
    path.write_bytes(data)
    refuse(path, "damaged|several files")


def test_too_many_entries(tmp_path) -> None:
    path = pack(tmp_path / "a.ckpt", {"a": 1})
    data = path.read_bytes()[:-22]
    # The 64-bit end of a directory that claims to list 10 million entries.
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**7, 10**7, len(data), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data), 1)
    path.write_bytes(
        data
        + end
        + locator
        + struct.pack("<4s4H2LH", b"PK\x05\x06", *[0xFFFF] * 2, *[0xFFFF] * 2, 0, 0, 0)
    )
    refuse(path, "directory")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (tensor(STORED, (2,), (-1,)), "strides has -1"),
        (tensor(STORED, (-2,), (1,)), "shape has -2"),
        (tensor(STORED, (2,), (1,), offset=-1), "offset has -1"),
        (tensor(STORED, (2,), (1,), offset=11), "beyond its storage"),
        (tensor(STORED, (13,), (1,)), "beyond its storage"),
        (tensor(STORED, (2,), (12,)), "beyond its storage"),
        (tensor(STORED, (2**62, 2**62), (0, 0)), "more than any memory"),
        (tensor(STORED, (0, 2**62, 2**62), (0, 0, 0)), "more than any memory"),
        (tensor(STORED, (2**64,), (0,)), "shape has a int"),
        (tensor(STORED, (True,), (1,)), "shape has True"),
        (tensor(STORED, ("a",), (1,)), "shape has 'a'"),
        (tensor(STORED, 5, (1,)), "shape is 5"),
        (tensor(STORED, [2], (1,)), "shape is a list"),
        (tensor(STORED, (1,) * 65, (1,) * 65), "65 lengths"),
        (tensor(STORED, (1,), (1, 1)), "1 lengths and 2 strides"),
        (tensor(STORED, (1,), (1,), offset=None), "offset has a NoneType"),
        (tensor(3, (1,), (1,)), "storage is 3"),
        (tensor(Stored("torch.FloatStorage", "0", 13), (1,), (1,)), "13 elements of float32"),
        (tensor(Stored("torch.FloatStorage", "0", -12), (1,), (1,)), "-12 elements"),
        (tensor(Stored("torch.FloatStorage", "0", 2**80), (1,), (1,)), "a int elements"),
        (tensor(Stored("torch.FloatStorage", "1", 12), (1,), (1,)), "has 0 bytes"),
        (tensor(Stored("torch.FloatStorage", "../0", 12), (1,), (1,)), "has 0 bytes"),
        (tensor(Stored("torch.FloatStorage", "0" * 400, 12), (1,), (1,)), "key of 400"),
        (tensor(Stored("torch.FloatStorage", 0, 12), (1,), (1,)), "a storage has wrong types"),
        (tensor(Stored("torch.FloatStorage", "0", None), (1,), (1,)), "a storage has wrong types"),
        (tensor(Stored("torch.QInt8Storage", "0", 48), (1,), (1,)), "QInt8Storage"),
        (tensor(Stored("os.system", "0", 48), (1,), (1,)), "os.system"),
        (
            Call(
                "torch._utils._rebuild_tensor_v3",
                (STORED, 0, (1,), (1,), False, None, Global("torch.float4")),
            ),
            "float4",
        ),
    ],
)
def test_hostile_tensors(tmp_path, call: Call, match: str) -> None:
    refuse(pack(tmp_path / "a.ckpt", call, STORAGES), match)


def test_checked_tensors_cannot_be_changed(tmp_path) -> None:
    """A pickle sets attributes of what it made; after the check, a tensor would read any memory."""
    checked = tensor(STORED, (2,), (1,))
    content = {
        "tensor": Built(checked, (None, {"shape": (1 << 30,), "offset": 1 << 40})),
        "fields": Built(checked, [STORED, "float32", (1 << 30,), (1,), 0]),
        "storage": tensor(Built(STORED, ["0", "float32", 1 << 40, None]), (2,), (1,)),
    }
    with open_torch_file(pack(tmp_path / "a.ckpt", content, STORAGES)) as file:
        for value in file.content.values():
            assert (value.shape, value.offset, value.storage.numel) == ((2,), 0, 12)
            assert value.read().tolist() == [0, 1]


def test_references_that_are_no_storage(tmp_path) -> None:
    refuse(pack(tmp_path / "a.ckpt", b"\x80\x02K\x01Q."), "no storage")


def test_expanded_to_fill_memory(tmp_path) -> None:
    call = tensor(STORED, (1 << 40,), (0,))
    with (
        open_torch_file(pack(tmp_path / "a.ckpt", call, STORAGES)) as file,
        pytest.raises(CheckpointError, match="repeats the few values"),
    ):
        file.content.read()


def test_damaged_values_are_noticed(tmp_path) -> None:
    path = pack(tmp_path / "a.ckpt", tensor(STORED, (12,), (1,)), STORAGES)
    path.write_bytes(path.read_bytes().replace(STORAGES["0"], bytes(48)))
    with open_torch_file(path) as file, pytest.raises(CheckpointError, match="checksum"):
        file.content.read()


def test_hostile_file_runs_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {
        "state_dict": {"a": tensor(STORED, (12,), (1,))},
        "b": Call("os.system", ("touch x",)),
    }
    with open_torch_file(pack(tmp_path / "a.ckpt", content, STORAGES)) as file:
        assert file.content["b"].args == ("touch x",)
        assert file.content["state_dict"]["a"].read().shape == (12,)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


# --- mutations ------------------------------------------------------------------------------------


def _sample(folder: Path) -> bytes:
    hooks = Call("collections.OrderedDict", ())
    content = {
        "state_dict": {
            "a": tensor(STORED, (3, 4), (4, 1)),
            "b": Call("torch._utils._rebuild_parameter", (tensor(STORED, (2,), (0,)), True, hooks)),
            "c": tensor(Stored("torch.BFloat16Storage", "1", 3), (3,), (1,), offset=0),
        },
        "hyper_parameters": {
            "model": Call("src.model.DiT", (1, "x")),
            "n": 2**70,
            "f": [None, True],
        },
    }
    path = pack(folder / "sample.ckpt", content, {**STORAGES, "1": bytes(6)})
    return path.read_bytes()


_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "delete", "insert", "copy", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=4,
)


def _mutate(data: bytes, edits: list[tuple[str, float, int, int]]) -> bytes:
    changed = bytearray(data)
    for kind, where, byte, length in edits:
        at = int(where * max(len(changed), 1))
        if kind == "flip" and changed:
            changed[at] = byte
        elif kind == "delete":
            del changed[at : at + length]
        elif kind == "insert":
            changed[at:at] = bytes([byte]) * length
        elif kind == "copy":
            changed[at:at] = changed[at : at + length]
        elif kind == "cut":
            del changed[at:]
    return bytes(changed)


def _answer(path: Path) -> str:
    """Read a file's content and tensors; return the error, or '' if there is none."""
    try:
        with open_torch_file(path) as file:
            visit(file.content)
    except CheckpointError as error:
        return str(error)
    return ""


@given(edits=_EDITS)
@settings(max_examples=400, deadline=None)
def test_mutated_files(edits: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The file as a whole: its directory, checksums and values."""
    folder = tmp_path_factory.getbasetemp() / "mutated_files"
    folder.mkdir(exist_ok=True)
    (folder / "a.ckpt").write_bytes(_mutate(_sample(folder), edits))
    answer = _answer(folder / "a.ckpt")
    assert not answer or str(folder / "a.ckpt") in answer


@given(edits=_EDITS)
@settings(max_examples=400, deadline=None)
def test_mutated_pickles(edits: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The pickle in a sound archive."""
    folder = tmp_path_factory.getbasetemp() / "mutated_pickles"
    folder.mkdir(exist_ok=True)
    _sample(folder)
    with zipfile.ZipFile(folder / "sample.ckpt") as archive:
        data = archive.read("archive/data.pkl")
    path = pack(folder / "a.ckpt", _mutate(data, edits), {**STORAGES, "1": bytes(6)})
    answer = _answer(path)
    assert not answer or str(path) in answer


_BOUNDED = """
import resource, sys
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from chemeleon2_jax.common.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_AS, (1536 << 20, 1536 << 20))
for path in sys.argv[1:]:
    try:
        with open_torch_file(path) as file:
            print("opened")
    except CheckpointError as error:
        print("refused:", str(error)[-150:])
"""


def test_memory_is_bounded(tmp_path, repository_dir) -> None:
    """In a process with at most 1.5 GB."""
    stubs = b"\x80\x02cos\nsystem\nq\x000" + b"h\x00" * 300_000 + b")" + b"\x85R" * 299_999 + b"."
    files = [
        pack(tmp_path / "stubs.ckpt", stubs),
        pack(tmp_path / "sets.ckpt", b"\x80\x02" + b"\x8f" * 2_900_000 + b"."),
        pack(tmp_path / "text.ckpt", b"X" + struct.pack("<L", 2**32 - 1) + b"a" * (60 << 20)),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED, *map(str, files)],
        capture_output=True,
        text=True,
        cwd=repository_dir,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert answers == ["opened", "opened", "refused"], done.stdout
