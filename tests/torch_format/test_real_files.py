"""Files of PyTorch, and checkpoints of the original."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chemeleon2_jax.common.stubs import Name, Stub
from chemeleon2_jax.torch_format.tensors import Tensor
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from chemeleon2_jax.torch_format.torch_writer import write_torch_file
from tests.torch_format.archives import (
    FLOATS,
    read,
    refuse,
)
from tests.torch_format.walk import visit

# --- files of PyTorch -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def test_torch_dtypes(torch: Any, tmp_path) -> None:
    values = torch.arange(6).reshape(2, 3)
    names = (
        *("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64"),
        *("uint8", "bool", "complex64", "complex128", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2"),
    )
    content = {name: values.to(getattr(torch, name)) for name in names}
    torch.save(content, tmp_path / "a.ckpt")
    loaded = read(tmp_path / "a.ckpt")
    for name, tensor_ in content.items():
        expected = tensor_.contiguous().view(torch.uint8).numpy()
        np.testing.assert_array_equal(loaded[name].view(np.uint8), expected, err_msg=name)


def test_torch_views_and_modules(torch: Any, tmp_path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2), torch.nn.LayerNorm(8))
    optimizer = torch.optim.AdamW(model.parameters())
    content = {
        "views": OrderedDict(
            transposed=base.T, part=base[1:3, ::2], row=base[2], expanded=base[:1].expand(3, 6)
        ),
        "model": model,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plain": {"a": (1, 2.5, "x", None, True, 2**70, b"ab", {1, 2}), 3: [torch.float32]},
        "size": base.shape,
    }
    torch.save(content, tmp_path / "a.ckpt")
    with open_torch_file(tmp_path / "a.ckpt") as file:
        loaded = file.content
        for name, view in content["views"].items():
            np.testing.assert_array_equal(loaded["views"][name].read(), view.numpy(), err_msg=name)
        assert len({view.storage.key for view in loaded["views"].values()}) == 1
        attention = loaded["model"].get("0")
        assert attention.name == "torch.nn.modules.activation.MultiheadAttention"
        assert attention.get("num_heads") == 2
        weight = attention.get("in_proj_weight").read()
        np.testing.assert_array_equal(weight, model[0].in_proj_weight.detach().numpy())
        assert list(loaded["state_dict"]) == list(model.state_dict())
        (dtype,) = loaded["plain"].pop(3)
        assert isinstance(dtype, Name)
        assert dtype.name == "torch.float32"
        *others, members = loaded["plain"].pop("a")
        assert (*others, set(members)) == content["plain"]["a"]
        assert not loaded["plain"]
        assert loaded["size"] == (4, 6)
        assert loaded["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_torch_legacy_and_scripts(torch: Any, tmp_path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    refuse(path, "before 1.6")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"model/{name}", b"")
    refuse(path, "TorchScript")


def test_torch_large_file_is_read_in_parts(torch: Any, tmp_path, repository_dir) -> None:
    """Weights of 64 MB are read, 256 MB of an optimizer's state are not."""
    weight = torch.ones(16 << 20)
    state = [torch.zeros(32 << 20) for _ in range(2)]
    torch.save({"state_dict": {"w": weight}, "optimizer_states": state}, tmp_path / "a.ckpt")
    script = """
import resource, sys
from chemeleon2_jax.torch_format.torch_file import open_torch_file
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
with open_torch_file(sys.argv[1]) as file:
    weight = file.content["state_dict"]["w"].read()
print(int(weight.sum()), peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.ckpt")],
        capture_output=True,
        text=True,
        cwd=repository_dir,
        check=True,
    )
    shutil.rmtree(tmp_path)
    total, megabytes = done.stdout.split()
    assert int(total) == 16 << 20
    assert float(megabytes) < 80


# --- checkpoints of the original ------------------------------------------------------------------


def test_golden_files(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "golden").glob("*.ckpt"))
    assert paths
    for path in paths:
        with open_torch_file(path) as file:
            state = file.content["state_dict"]
            assert state
            for name, value in state.items():
                assert isinstance(value, Tensor), (path, name)
                assert np.isfinite(value.read()).all(), (path, name)
            assert isinstance(file.content["hyper_parameters"], dict | Stub), path
            visit(file.content)


def test_golden_heads(shared_dir: Path) -> None:
    """Only the pickled modules hold the number of heads."""
    with open_torch_file(shared_dir / "golden" / "vae.ckpt") as file:
        encoder = file.content["hyper_parameters"]["encoder"]
        assert encoder.name == "src.vae_module.encoders.transformer.TransformerEncoder"
        attention = encoder.get("transformer").get("layers").get("0").get("self_attn")
        assert attention.get("num_heads") == 4


def test_written_by_us(tmp_path) -> None:
    write_torch_file(tmp_path / "a.ckpt", {"a": FLOATS, "b": [1, (2.5, None)]})
    loaded = read(tmp_path / "a.ckpt")
    np.testing.assert_array_equal(loaded["a"], FLOATS)
    assert loaded["b"] == [1, (2.5, None)]
