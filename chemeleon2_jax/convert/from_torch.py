"""From a checkpoint of the PyTorch original to parameter trees and a meta as checkpoints here have.

Nothing of the file is run, and only the tensors that are kept are read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from chemeleon2_jax.convert.content import (
    averages_of,
    hyper_parameters_of,
    kind_of,
    listed,
    own_entry,
    state_dict_of,
)
from chemeleon2_jax.convert.denoiser_sizes import diffusion_config, ldm_sizes
from chemeleon2_jax.convert.model import Converted, Options, Report, vae_item
from chemeleon2_jax.convert.names import (
    LATENT_STD,
    Entry,
    condition_entries,
    dit_entries,
    predictor_entries,
    vae_entries,
)
from chemeleon2_jax.convert.sizes import (
    PUBLISHED_HEADS,
    PUBLISHED_WIDTH,
    Heads,
    HeadsUnknownError,
    State,
    predictor_sizes,
    vae_sizes,
)
from chemeleon2_jax.convert.stubs import Stub
from chemeleon2_jax.convert.torch_file import TorchFile, open_torch_file
from chemeleon2_jax.data.sources import published_size_table
from chemeleon2_jax.errors import CheckpointError
from chemeleon2_jax.models.abstract import abstract_module
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.predictor import Predictor
from chemeleon2_jax.models.vae import VAE, VAESizes
from chemeleon2_jax.training.trees import flat_names, to_plain

log = logging.getLogger(__name__)

DEFAULT_SIZE_TABLE = "mp-20"

_FLOATS = ("float32", "float64", "float16", "bfloat16")


def convert_file(path: str | Path, options: Options | None = None) -> Converted:
    """Read a model of the PyTorch original: VAE, LDM (RL checkpoints are LDMs) or predictor.

    Raises:
        CheckpointError: it is no such file, it is broken, or a tensor is missing, unexpected or
            has another shape.
    """
    options = options or Options()
    with open_torch_file(path) as file:
        try:
            return _Reader(file, options).convert()
        except HeadsUnknownError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except CheckpointError as error:
            if str(path) in str(error):
                raise
            raise CheckpointError(f"{path}: {error}") from error


class _Reader:
    """One file being converted."""

    def __init__(self, file: TorchFile, options: Options) -> None:
        self.file, self.options = file, options
        tensors = state_dict_of(file.content)
        self.hyper = hyper_parameters_of(file.content)
        self.report = Report(kind_of(tensors))
        self.left = dict(tensors)
        if options.ema:
            tensors = averages_of(file.content, tensors)
        elif isinstance(file.content, Mapping) and file.content.get("ema_state"):
            self.report.ignored.append(("ema_state", "moving averages; --ema takes them instead"))
        self.state = State(tensors)
        self.dtypes: dict[str, str] = {}
        self.meta: dict[str, Any] = {}
        self.trees: dict[str, dict[str, Any]] = {}

    def convert(self) -> Converted:
        """Convert whatever the file holds."""
        {"VAE": self._vae, "LDM": self._ldm, "predictor": self._predictor}[self.report.kind]()
        if self.left:
            raise CheckpointError(
                "tensors that no known model has: " + listed(list(self.left)) + ". It was made by "
                "another version or variant of Chemeleon2, which cannot be converted"
            )
        content = self.file.content
        self.meta["source"] = {
            "file": self.file.path.name,
            "ema": self.options.ema,
            "dtypes": self.dtypes,
            **{k: content[k] for k in ("epoch", "global_step") if isinstance(content.get(k), int)},
        }
        return Converted(self.file.path, self.meta, self.trees, self.report)

    def _vae(self) -> None:
        sizes = vae_sizes(
            self.state,
            self.hyper.get("encoder"),
            self.hyper.get("decoder"),
            heads=self.options.vae_heads,
        )
        self._start("train_vae", sizes)
        self.trees["params"] = self._read(vae_entries(sizes), VAE, sizes)

    def _ldm(self) -> None:
        dit = ldm_sizes(self.state, self.hyper)
        vae, vae_tree = self._vae_of_ldm()
        if dit.latent_dim != vae.latent_dim:
            raise CheckpointError(
                f"its denoiser works on latents of width {dit.latent_dim}, but the VAE has "
                f"{vae.latent_dim}"
            )
        self._start("train_ldm", vae)
        self.meta["dit"] = dit.to_dict()
        self.meta["diffusion"] = asdict(diffusion_config(self.hyper))
        self.meta["latent_std"] = self._latent_std()
        self.meta["sample_weights"] = "raw"
        self.meta["vae_config"] = {}
        self.trees["params"] = self._read([*dit_entries(dit), *condition_entries(dit)], DiT, dit)
        self.trees["vae"] = vae_tree

    def _vae_of_ldm(self) -> tuple[VAESizes, dict[str, Any]]:
        """Sizes and parameters of an LDM's VAE, whose heads its file does not tell."""
        given = self.options.vae
        if not any(name.startswith("vae.") for name in self.state.tensors):
            given = given if given is not None else self._vae_beside()
            if given is None:
                raise CheckpointError(
                    "it does not hold its VAE; give the checkpoint of the VAE that it was trained "
                    "with (--vae, or load_model(..., vae=...))"
                )
            return VAESizes.from_dict(given.meta["vae"]), given.restore(vae_item(given))
        heads = self.options.vae_heads if given is None else _heads_of(given)
        state, modules = self.state.below("vae."), _vae_modules(self.file.content, self.hyper)
        try:
            sizes = vae_sizes(state, *modules, heads=heads)
        except HeadsUnknownError:
            return self._vae_without_heads(state)
        tree = self._read(vae_entries(sizes, "vae."), VAE, sizes)
        if given is not None and not _equal(tree, given.restore(vae_item(given))):
            self.report.notes.append(
                f"the VAE in the file is used; {given.path.name} has other weights and told the "
                "number of heads alone"
            )
        return sizes, tree

    def _vae_beside(self) -> Converted | None:
        """The VAE that the file names, where it lies beside the file."""
        name = self.hyper.get("vae_ckpt_path")
        if not isinstance(name, str) or not name:
            return None
        path = self.file.path.parent / PureWindowsPath(name).name  # of either system
        if not path.is_file() or path == self.file.path:
            return None
        try:
            return convert_file(path)
        except CheckpointError as error:
            self.report.notes.append(f"{path.name} beside it cannot be used: {error}")
            return None

    def _vae_without_heads(self, state: State) -> tuple[VAESizes, dict[str, Any]]:
        """Heads of the very same VAE beside the file, or else of the published ones. To guess any
        other would be silent: with the wrong number a VAE still half reconstructs.

        Raises:
            HeadsUnknownError: it is neither.
        """
        sizes = vae_sizes(state, heads=(1, 1))
        tree = self._read(vae_entries(sizes, "vae."), VAE, sizes)
        beside, width = self._vae_beside(), sizes.decoder.d_model
        if beside is not None and _equal(tree, beside.trees[vae_item(beside)]):
            heads = _heads_of(beside)
            note = f"{beside.path.name} beside it tells the heads of its VAE: {heads[1]}"
        elif width == PUBLISHED_WIDTH:
            heads = (PUBLISHED_HEADS, PUBLISHED_HEADS)
            note = f"its VAE is as wide as the published ones, and is given their {heads[1]} heads"
        else:
            raise HeadsUnknownError
        self.report.notes.append(note)
        return _with_heads(sizes, heads), tree

    def _predictor(self) -> None:
        module = self.hyper.get("vae")
        sizes = vae_sizes(
            self.state.below("vae."),
            _part(module, "encoder"),
            _part(module, "decoder"),
            heads=self.options.vae_heads,
        )
        predictor = predictor_sizes(self.state, self.hyper, sizes)
        self._start("train_predictor", sizes)
        self.meta["predictor"] = predictor.to_dict()
        self.trees["params"] = self._read(predictor_entries(predictor), Predictor, predictor)
        self.trees["vae"] = self._read(vae_entries(sizes, "vae."), VAE, sizes)

    def _start(self, stage: str, vae: VAESizes) -> None:
        self.meta.update(stage=stage, vae=vae.to_dict(), config={})
        self.meta["size_table"] = self._size_table()

    def _size_table(self) -> list[int]:
        """What the file does not tell, unless this package wrote it."""
        own = own_entry(self.file.content).get("size_table")
        if self.options.size_table:
            return list(self.options.size_table)
        if own is None:
            return [int(n) for n in published_size_table(DEFAULT_SIZE_TABLE)]
        if not isinstance(own, list) or not all(type(n) is int and n >= 0 for n in own):
            raise CheckpointError("its size_table is no list of numbers of crystals")
        return own

    def _latent_std(self) -> float:
        if LATENT_STD not in self.state:
            self.report.notes.append("it holds no latent_std: 1 is used")
            return 1.0
        self.state.shape(LATENT_STD, ndim=0)
        value = float(self._take(Entry(LATENT_STD, LATENT_STD)))
        if not np.isfinite(value) or value <= 0:
            raise CheckpointError(f"its latent_std is {value}; it must be more than 0")
        return value

    def _read(self, entries: list[Entry], module: Any, sizes: Any) -> dict[str, Any]:
        """Read the tensors of `module(sizes)` into nested dicts.

        Raises:
            CheckpointError: some are missing, or have another shape.
        """
        missing = [entry.theirs for entry in entries if entry.theirs not in self.state]
        if missing:
            raise CheckpointError(f"tensors are missing: {listed(missing)}")
        self._check_shapes(entries, module, sizes)
        tree: dict[str, Any] = {}
        for entry in entries:
            node = tree
            *parents, leaf = entry.ours.split("/")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = self._take(entry)
        return tree

    def _check_shapes(self, entries: list[Entry], module: Any, sizes: Any) -> None:
        try:
            expected = _shapes(module, sizes)
        except ValueError as error:  # sizes that no model can have
            raise CheckpointError(f"its sizes fit no model: {error}") from error
        problems = []
        for entry in entries:
            wanted = expected[entry.ours]
            wanted = wanted[::-1] if entry.transposed else wanted
            shape = tuple(self.state.tensors[entry.theirs].shape)
            if shape != wanted:
                problems.append(f"{entry.theirs} has the shape {shape} instead of {wanted}")
        if problems:
            raise CheckpointError(f"tensors do not fit: {listed(problems)}")

    def _take(self, entry: Entry) -> np.ndarray:
        """Read one tensor and tick it off."""
        tensor = self.state.tensors[entry.theirs]
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(f"its tensor {entry.theirs} holds {tensor.dtype}, not weights")
        if tensor.dtype != "float32":
            self.dtypes[entry.theirs] = tensor.dtype
            if tensor.dtype == "float64":
                self.report.notes.append(f"{entry.theirs} is rounded from float64 to float32")
        array = tensor.read().astype(np.float32, copy=False)
        if entry.transposed:
            array = np.ascontiguousarray(array.T)
        self.left.pop(entry.theirs, None)
        self.report.num_tensors += 1
        self.report.num_parameters += array.size
        return array


def _part(module: Any, name: str) -> Any:
    """A submodule of a pickled module, or a block of plain options."""
    if isinstance(module, Stub | Mapping):
        return module.get(name)
    return None


def _vae_modules(content: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
    """Encoder and decoder of an LDM's VAE: pickled with it, or in what this package wrote."""
    module = own_entry(content).get("vae", hyper.get("vae"))
    return _part(module, "encoder"), _part(module, "decoder")


def _with_heads(sizes: VAESizes, heads: Heads) -> VAESizes:
    """The same sizes with other numbers of attention heads."""
    encoder = replace(sizes.encoder, nhead=heads[0])
    return replace(sizes, encoder=encoder, decoder=replace(sizes.decoder, nhead=heads[1]))


@lru_cache(maxsize=16)
def _shapes(module: Any, sizes: Any) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the parameters of `module(sizes)` by name."""
    _, params = abstract_module(module, sizes)
    return {name: tuple(leaf.shape) for name, leaf in flat_names(to_plain(params)).items()}


def _heads_of(checkpoint: Any) -> Heads:
    sizes = VAESizes.from_dict(checkpoint.meta["vae"])
    return sizes.encoder.nhead, sizes.decoder.nhead


def _equal(tree: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two nested dicts hold the same arrays."""
    ours, theirs = flat_names(dict(tree)), flat_names(dict(other))
    return ours.keys() == theirs.keys() and all(
        np.array_equal(array, theirs[name]) for name, array in ours.items()
    )
