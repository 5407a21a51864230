"""Golden files: weights that the PyTorch original saved, laid into our modules.

They are read without running what their pickles name.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chemeleon2_jax.crystals import Crystals
from chemeleon2_jax.models.dit import DiT, DiTSizes
from chemeleon2_jax.models.vae import VAE, DecoderSizes, EncoderSizes, VAESizes
from chemeleon2_jax.packing import Assignment, assign_padded, build_rows, plan_shapes
from chemeleon2_jax.packing import assign as assign_packed
from chemeleon2_jax.rows import Rows


@dataclass(frozen=True)
class Golden:
    """Folder of the checkpoints, arrays that the original computed, sizes of its models."""

    folder: Path
    arrays: Any
    size: dict[str, int]

    @staticmethod
    def open(folder: Path) -> Golden:
        """Open the files of a folder."""
        sizes = json.loads((folder / "crystals.json").read_text())["size"]
        return Golden(folder, np.load(folder / "golden.npz"), sizes)

    def state_dict(self, name: str) -> dict[str, np.ndarray]:
        """Tensors of one checkpoint."""
        return read_state_dict(self.folder / f"{name}.ckpt")


_STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64, "BoolStorage": np.bool_}


class _Dict(dict[str, Any]):
    """An OrderedDict's stand-in that takes attributes."""


class _Stub:
    """Stands for any class that the pickle names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> _Stub:
        return _Stub()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore."""

    def append(self, value: Any) -> None:
        """Ignore."""


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint's `state_dict`."""
    archive = zipfile.ZipFile(path)
    pickled = next(n for n in archive.namelist() if n.endswith("data.pkl"))
    root = pickled.removesuffix("data.pkl")

    def rebuild(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> np.ndarray:
        dtype, key = storage
        flat = np.frombuffer(archive.read(f"{root}data/{key}"), dtype)[offset:]
        strides = [s * flat.itemsize for s in stride]
        return np.lib.stride_tricks.as_strided(flat, size, strides).copy()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = {"_rebuild_tensor_v2": rebuild, "OrderedDict": _Dict, **_STORAGES}
            plain = {"set": set, "dict": dict, "list": list, "int": int, "float": float}
            if module == "builtins" and name in plain:
                return plain[name]
            return known.get(name, type(name, (_Stub,), {}))

        def persistent_load(self, pid: Any) -> Any:
            return (pid[1] if pid[1] in _STORAGES.values() else np.float32, pid[2])

    return Unpickler(archive.open(pickled)).load()["state_dict"]


def _linear(out: dict[str, Any], ours: str, state: dict[str, np.ndarray], theirs: str) -> None:
    out[f"{ours}.kernel"] = state[f"{theirs}.weight"].T
    if f"{theirs}.bias" in state:
        out[f"{ours}.bias"] = state[f"{theirs}.bias"]


def _norm(out: dict[str, Any], ours: str, state: dict[str, np.ndarray], theirs: str) -> None:
    out[f"{ours}.scale"], out[f"{ours}.bias"] = state[f"{theirs}.weight"], state[f"{theirs}.bias"]


def _attention(out: dict[str, Any], ours: str, state: dict[str, np.ndarray], theirs: str) -> None:
    out[f"{ours}.qkv.kernel"] = state[f"{theirs}.in_proj_weight"].T
    out[f"{ours}.qkv.bias"] = state[f"{theirs}.in_proj_bias"]
    _linear(out, f"{ours}.out", state, f"{theirs}.out_proj")


def _transformer(out: dict[str, Any], part: str, state: dict[str, np.ndarray], layers: int) -> None:
    for i in range(layers):
        ours, theirs = f"{part}.transformer.layers.{i}", f"{part}.transformer.layers.{i}"
        _attention(out, f"{ours}.attention", state, f"{theirs}.self_attn")
        _linear(out, f"{ours}.mlp.fc1", state, f"{theirs}.linear1")
        _linear(out, f"{ours}.mlp.fc2", state, f"{theirs}.linear2")
        _norm(out, f"{ours}.norm1", state, f"{theirs}.norm1")
        _norm(out, f"{ours}.norm2", state, f"{theirs}.norm2")
    _norm(out, f"{part}.transformer.norm", state, f"{part}.transformer.norm")


def load_vae(state: dict[str, np.ndarray], size: dict[str, int]) -> VAE:
    """A VAE with the weights of a golden checkpoint (or of the `vae.` part of another)."""
    cspnet = "encoder.node_embedding.weight" in state
    width = {"d_model": size["d"], "nhead": size["h"], "dim_feedforward": size["ff"]}
    sizes = VAESizes(
        latent_dim=size["lat"],
        encoder=EncoderSizes(
            "cspnet" if cspnet else "transformer",
            **width,
            num_layers=size["layers"],
            num_freqs=16,
        ),
        decoder=DecoderSizes(**width, num_layers=size["layers"]),
        atom_type_predict="decoder.atom_types_head.weight" in state,
        foundation_alignment="proj.weight" in state,
    )
    out: dict[str, Any] = {}
    if cspnet:
        out["encoder.atom_types"] = state["encoder.node_embedding.weight"]
        for i in range(size["layers"]):
            ours, theirs = f"encoder.layers.{i}", f"encoder.csp_layer_{i}"
            for name in ("edge", "node"):
                _linear(out, f"{ours}.{name}1", state, f"{theirs}.{name}_mlp.0")
                _linear(out, f"{ours}.{name}2", state, f"{theirs}.{name}_mlp.2")
            _norm(out, f"{ours}.norm", state, f"{theirs}.layer_norm")
        _norm(out, "encoder.norm", state, "encoder.final_layer_norm")
        _linear(out, "encoder.out", state, "encoder.fc_out")
    else:
        out["encoder.atom_types"] = state["encoder.atom_type_embedder.weight"]
        for name in ("lattices", "frac_coords"):
            _linear(out, f"encoder.{name}.fc1", state, f"encoder.{name}_embedder.0")
            _linear(out, f"encoder.{name}.fc2", state, f"encoder.{name}_embedder.2")
        _transformer(out, "encoder", state, size["layers"])
    _transformer(out, "decoder", state, size["layers"])
    _linear(out, "quant", state, "quant_conv")
    _linear(out, "decoder.post_quant", state, "post_quant_conv")
    _linear(out, "decoder.frac_head", state, "decoder.frac_coords_head")
    _linear(out, "decoder.lattice_head", state, "decoder.lattice_head")
    if sizes.atom_type_predict:
        _linear(out, "decoder.atom_head", state, "decoder.atom_types_head")
    if sizes.foundation_alignment:
        _linear(out, "projection", state, "proj")
    return _fill(VAE(sizes, rngs=nnx.Rngs(0)), out)


def load_dit(state: dict[str, np.ndarray], size: dict[str, int]) -> tuple[DiT, DiTSizes]:
    """A DiT with the weights of a golden checkpoint (its `denoiser.` part)."""
    width = state["denoiser.final_layer.linear.bias"].shape[0]
    sizes = DiTSizes(
        latent_dim=size["lat"],
        hidden_size=size["hid"],
        depth=size["depth"],
        num_heads=size["dh"],
        learn_sigma=width == 2 * size["lat"],
        variance_layout="interleaved",
    )
    out: dict[str, Any] = {}
    _linear(out, "x_embedder", state, "denoiser.x_embedder")
    _linear(out, "t_embedder.fc1", state, "denoiser.t_embedder.mlp.0")
    _linear(out, "t_embedder.fc2", state, "denoiser.t_embedder.mlp.2")
    for i in range(size["depth"]):
        ours, theirs = f"blocks.{i}", f"denoiser.blocks.{i}"
        _attention(out, f"{ours}.attention", state, f"{theirs}.attn")
        _linear(out, f"{ours}.mlp.fc1", state, f"{theirs}.mlp.fc1")
        _linear(out, f"{ours}.mlp.fc2", state, f"{theirs}.mlp.fc2")
        _linear(out, f"{ours}.modulation", state, f"{theirs}.adaLN_modulation.1")
    _linear(out, "final", state, "denoiser.final_layer.linear")
    _linear(out, "final_modulation", state, "denoiser.final_layer.adaLN_modulation.1")
    return _fill(DiT(sizes, rngs=nnx.Rngs(0)), out), sizes


def _fill(model: Any, values: dict[str, Any]) -> Any:
    """Set every parameter of a model; names must match one to one."""
    graphdef, params = nnx.split(model, nnx.Param)
    flat = nnx.to_flat_state(params)
    names = {".".join(str(p) for p in path) for path, _ in flat}
    assert names == set(values), (names - set(values), set(values) - names)
    filled = []
    for path, leaf in flat:
        value = values[".".join(str(p) for p in path)]
        assert leaf[...].shape == value.shape, path
        filled.append((path, leaf.replace(jnp.asarray(value))))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def golden_rows(golden: Any, layout: str, *, edges: bool = False) -> tuple[Rows, Assignment]:
    """The eight golden crystals, `packed` or `padded` to 20 atoms."""
    sizes = golden["batch/num_atoms"]
    ends = np.cumsum(sizes)
    parts = [slice(e - n, e) for e, n in zip(ends, sizes, strict=True)]
    crystals = Crystals.from_list(
        (golden["batch/atom_types"][p], golden["batch/frac_coords"][p], lattice)
        for p, lattice in zip(parts, golden["batch/lattices"], strict=True)
    )
    pairs = int((sizes**2).sum()) + 5 if edges else 0
    if layout == "padded":
        assignment = assign_padded(sizes, 20, edges=pairs)
    else:
        assignment = assign_packed(sizes, plan_shapes(sizes, 8, edges=edges))
    return jax.tree.map(jnp.asarray, build_rows(crystals, assignment)), assignment


def to_tokens(values: np.ndarray, where: Assignment) -> jax.Array:
    """Values of atoms to rows: (A, W), or (8, 20, W) as the original pads them, to (R, T, W)."""
    if values.ndim == 3:
        values = real_atoms(values, where)
    return _scatter(values, where.token_index, (where.shape.rows, where.shape.tokens))


def to_slots(values: np.ndarray, where: Assignment) -> jax.Array:
    """Values of crystals (8,) to rows: (R, S)."""
    return _scatter(values, where.slot_index, (where.shape.rows, where.shape.slots))


def _scatter(values: np.ndarray, index: np.ndarray, shape: tuple[int, int]) -> jax.Array:
    out = np.zeros((shape[0] * shape[1], *values.shape[1:]), values.dtype)
    out[index] = values
    return jnp.asarray(out.reshape(*shape, *values.shape[1:]))


def real_atoms(values: Any, where: Assignment) -> np.ndarray:
    """(8, 20, W) padded values to those of the atoms, (A, W)."""
    pairs = zip(np.asarray(values), where.sizes, strict=True)
    return np.concatenate([crystal[:size] for crystal, size in pairs])
