"""Written files read back bit for bit, here and in PyTorch."""

from __future__ import annotations

import math
import subprocess
import sys
import zipfile
from collections import OrderedDict
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format import torch_writer
from chemeleon2_jax.torch_format.tensors import DTYPES, Tensor
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from chemeleon2_jax.torch_format.torch_writer import write_torch_file

_ARRAYS = st.builds(
    lambda dtype, shape, seed: (
        np.random.default_rng(seed)
        .integers(0, 2 if dtype == np.bool_ else 256, (*shape, dtype.itemsize), np.uint8)
        .view(dtype)
        .reshape(shape)
    ),
    st.sampled_from(list(DTYPES.values())),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    st.integers(0, 2**32),
)
_PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**1500), 2**1500),
    st.floats(),
    st.text(max_size=20),
)
_KEYS = st.one_of(st.text(max_size=9), st.integers(-(2**62), 2**62), st.booleans())
CONTENT = st.recursive(
    st.one_of(_ARRAYS, _PLAIN),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_KEYS, inner, max_size=4),
        st.dictionaries(_KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=10,
)


def same(loaded: Any, expected: Any) -> bool:
    """Whether values are equal bit for bit; tensors are read."""
    if isinstance(expected, np.ndarray):
        values = loaded.read() if isinstance(loaded, Tensor) else loaded
        native = expected.astype(expected.dtype.newbyteorder("="))
        return (values.dtype, values.shape, values.tobytes()) == (
            native.dtype,
            expected.shape,
            native.tobytes(),
        )
    if isinstance(expected, dict):
        pairs = zip(loaded.items(), expected.items(), strict=True)
        return all(a == b and same(x, y) for (a, x), (b, y) in pairs)
    if isinstance(expected, list | tuple):
        pairs = zip(loaded, expected, strict=True)
        return type(loaded) is type(expected) and all(same(x, y) for x, y in pairs)
    if isinstance(expected, float) and math.isnan(expected):
        return math.isnan(loaded)
    return type(loaded) is type(expected) and bool(loaded == expected)


@given(content=CONTENT)
@settings(max_examples=200, deadline=None)
def test_round_trip(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.ckpt"
    write_torch_file(path, content)
    with open_torch_file(path) as file:
        assert same(file.content, content)


def _many() -> dict[str, Any]:
    """Every element type, several shapes, values of every kind."""
    arrays = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in DTYPES.items()}
    return {
        "state_dict": OrderedDict(
            **arrays,
            scalar=np.array(1.5, np.float32),
            empty=np.zeros((0, 3)),
            transposed=np.arange(6.0).reshape(2, 3).T,
            swapped=np.arange(3, dtype=">f4"),
            repeated=np.broadcast_to(np.float32(3), (2, 2)),
        ),
        "plain": [1, -1, 300, -300, 2**40, -(2**200), 255, 256, -(2**31), 1.5, math.inf, True],
        "text": ("ü", "\ud800", "", None, (), [], {}),
        3: {"nested": {1.5: False}},
    }


def test_torch_reads_it(tmp_path) -> None:
    """With `weights_only`, PyTorch's default; also mapped, which needs aligned storages."""
    torch = pytest.importorskip("torch")
    content = _many()
    write_torch_file(tmp_path / "a.ckpt", content)
    for mapped in (False, True):
        loaded = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=mapped)
        assert list(loaded) == list(content)
        assert loaded["plain"] == content["plain"]
        assert loaded["text"] == content["text"]
        assert loaded[3] == content[3]
        assert type(loaded["state_dict"]) is OrderedDict
        assert type(loaded) is dict
        for name, expected in content["state_dict"].items():
            tensor = loaded["state_dict"][name]
            assert tensor.shape == expected.shape, name
            native = expected.astype(expected.dtype.newbyteorder("="))
            assert str(tensor.dtype) == f"torch.{native.dtype.name}", name
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert raw == native.tobytes(), name
            assert tensor.storage_offset() == 0


def test_torch_loads_a_state_dict(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    write_torch_file(tmp_path / "a.ckpt", {"state_dict": OrderedDict(state)})
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    other.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_layout(tmp_path) -> None:
    """One aligned, uncompressed storage for each tensor; the same content gives the same file."""
    array = np.arange(5.0)
    for name in ("a.ckpt", "b.ckpt"):
        write_torch_file(tmp_path / name, {"x": array, "y": array})
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    whole = (tmp_path / "a.ckpt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        assert archive.infolist()[0].filename == "archive/data.pkl"
        for key in "01":
            info = archive.getinfo(f"archive/data/{key}")
            assert info.compress_type == zipfile.ZIP_STORED
            start = info.header_offset + 30 + len(info.filename) + len(info.extra)
            assert start % 64 == 0
            assert whole[start : start + 40] == array.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]


def test_wide_sizes(tmp_path, monkeypatch) -> None:
    """Headers with 64-bit sizes, here from 100 bytes instead of a GB."""
    monkeypatch.setattr(torch_writer, "_WIDE_FROM", 100)
    content = {"a": np.arange(100.0), "b": np.arange(3)}
    write_torch_file(tmp_path / "a.ckpt", content)
    with open_torch_file(tmp_path / "a.ckpt") as file:
        assert same(file.content, content)
    torch = pytest.importorskip("torch")
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=True)
    assert torch.equal(loaded["a"], torch.arange(100.0, dtype=torch.float64))


class Level(IntEnum):
    HIGH = 3


def test_kinds_of_numbers(tmp_path) -> None:
    import jax.numpy as jnp

    content = {"enum": Level.HIGH, "scalar": np.float32(2), "int": np.int64(3), "jax": jnp.ones(2)}
    write_torch_file(tmp_path / "a.ckpt", content)
    with open_torch_file(tmp_path / "a.ckpt") as file:
        assert (file.content["enum"], file.content["scalar"], file.content["int"]) == (3, 2.0, 3)
        assert file.content["jax"].read().tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"a": {"b": {1, 2}}}, r"'\[a\]\[b\]' is a set"),
        ({"a": [object()]}, r"'\[a\]\[0\]' is a object"),
        (b"x", "the content is a bytes"),
        ({"a": {None: 1}}, "key that is a NoneType"),
        ({"a": {(1, 2): 1}}, "key that is a tuple"),
        ({"a": np.array(["x"])}, "PyTorch has not"),
        ({"a": np.array([None])}, "PyTorch has not"),
        ({"a": np.zeros(2, "datetime64[s]")}, "PyTorch has not"),
        ({"a": 1 << 3000}, "integer of 376 bytes"),
        ({"a": 1j}, "is a complex"),
    ],
)
def test_what_cannot_be_written(tmp_path, content: Any, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        write_torch_file(tmp_path / "a.ckpt", content)
    assert str(tmp_path / "a.ckpt") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_content_that_holds_itself(tmp_path) -> None:
    content: dict[str, Any] = {}
    content["a"] = content
    with pytest.raises(CheckpointError, match="holds itself"):
        write_torch_file(tmp_path / "a.ckpt", content)


def test_old_file_stays(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.ckpt"
    write_torch_file(path, {"a": 1})

    def fail(array: Any) -> memoryview:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch_writer, "_bytes_of", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_torch_file(path, {"a": np.zeros(3)})
    with open_torch_file(path) as file:
        assert file.content == {"a": 1}
    assert [loaded.name for loaded in tmp_path.iterdir()] == ["a.ckpt"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_torch_file(tmp_path / "absent" / "a.ckpt", {})
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_torch_file("a\0b", {})


def test_no_second_copy_in_memory(tmp_path, repository_dir: Path) -> None:
    """Writing three arrays of 64 MB takes no more memory than one of them."""
    script = """
import resource, sys
import numpy as np
from chemeleon2_jax.torch_format.torch_writer import write_torch_file
arrays = {name: np.ones((4096, 4096), np.float32) for name in "abc"}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
write_torch_file(sys.argv[1], arrays)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.ckpt")],
        capture_output=True,
        text=True,
        cwd=repository_dir,
        check=True,
    )
    (tmp_path / "a.ckpt").unlink()
    assert float(done.stdout) < 70
