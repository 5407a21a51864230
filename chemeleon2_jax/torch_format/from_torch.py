"""From a checkpoint of the PyTorch original to parameter trees and a meta, as checkpoints here.

Nothing of the file is run. Of its tensors, only those of the model are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.meta import LDMMeta, ModelMeta, TorchSource, read_size_table
from chemeleon2_jax.models.predictor import Predictor
from chemeleon2_jax.models.sizes import VAESizes
from chemeleon2_jax.models.vae import VAE
from chemeleon2_jax.torch_format.content import (
    averages_of,
    hyper_parameters_of,
    kind_of,
    listed,
    own_entry,
    state_dict_of,
)
from chemeleon2_jax.torch_format.denoiser_sizes import diffusion_config, ldm_sizes
from chemeleon2_jax.torch_format.hyperparameters import part_of
from chemeleon2_jax.torch_format.model import Converted, Options, Report
from chemeleon2_jax.torch_format.names import (
    LATENT_STD,
    Entry,
    condition_entries,
    dit_entries,
    predictor_entries,
    vae_entries,
)
from chemeleon2_jax.torch_format.reading import TreeReader
from chemeleon2_jax.torch_format.size_tables import DEFAULT_SIZE_TABLE, published_size_table
from chemeleon2_jax.torch_format.sizes import HeadsUnknownError, State, predictor_sizes, vae_sizes
from chemeleon2_jax.torch_format.torch_file import TorchFile, open_torch_file
from chemeleon2_jax.torch_format.vae_of_ldm import published_heads, vae_of_ldm, with_heads

# Exceptions of code that meets an unforeseen value of a foreign or hostile file.
_UNFORESEEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


def convert_file(path: str | Path, options: Options | None = None) -> Converted:
    """Read a model of the PyTorch original: VAE, LDM (RL checkpoints are LDMs) or predictor.

    Raises:
        CheckpointError: the file is of another kind or broken, or a tensor of it is missing,
            unexpected or of another shape.
    """
    options = options or Options()
    with open_torch_file(path) as file:
        try:
            return _Converter(file, options).convert()
        except CheckpointError as error:
            if str(path) in str(error):
                raise
            raise CheckpointError(f"{path}: {error}") from error
        except _UNFORESEEN as error:
            raise CheckpointError(
                f"{path}: it cannot be read as a model: {type(error).__name__}: {error!s:.300}"
            ) from error


class _Converter:
    """One file being converted."""

    def __init__(self, file: TorchFile, options: Options) -> None:
        self.file, self.options = file, options
        tensors = state_dict_of(file.content)
        self.hyper = hyper_parameters_of(file.content)
        self.report = Report(kind_of(tensors))
        if options.only_vae and self.report.kind != "VAE":
            raise CheckpointError(f"it is no VAE, but a checkpoint of an {self.report.kind}")
        if options.ema:
            tensors = averages_of(file.content, tensors)
        elif isinstance(file.content, Mapping) and file.content.get("ema_state"):
            self.report.ignored.append(("ema_state", "moving averages; --ema takes them instead"))
        if isinstance(file.content, Mapping) and file.content.get("optimizer_states"):
            self.report.ignored.append(("optimizer_states", "for resuming the training in PyTorch"))
        self.state = State(tensors)
        self.reader = TreeReader(self.state, self.report)
        self.trees: dict[str, dict[str, Any]] = {}

    def convert(self) -> Converted:
        """Convert the model of the file."""
        read = {"VAE": self._vae, "LDM": self._ldm, "predictor": self._predictor}
        meta = read[self.report.kind]()
        if self.reader.left:
            raise CheckpointError(
                f"tensors that no known model has: {listed(list(self.reader.left))}. It was made "
                "by another version or variant of Chemeleon2, which cannot be converted"
            )
        content = self.file.content
        source = TorchSource(
            file=self.file.path.name,
            ema=self.options.ema,
            dtypes=self.reader.dtypes,
            notes=(*self.report.notes, *self.report.assumptions),
            **{k: content[k] for k in ("epoch", "global_step") if isinstance(content.get(k), int)},
        )
        meta = replace(meta, source=source)
        return Converted(self.file.path, meta, self.trees, self.report)

    def _vae(self) -> ModelMeta:
        sizes = self._vae_sizes(self.state, self.hyper)
        self.trees["params"] = self.reader.read(vae_entries(sizes), VAE, sizes)
        return self._meta("train_vae", sizes)

    def _ldm(self) -> ModelMeta:
        dit = ldm_sizes(self.state, self.hyper)
        vae, vae_tree = vae_of_ldm(
            self.file, self.reader, self.hyper, options=self.options, convert=convert_file
        )
        if dit.latent_dim != vae.latent_dim:
            raise CheckpointError(
                f"its denoiser works on latents of width {dit.latent_dim}, but the VAE has "
                f"{vae.latent_dim}"
            )
        ldm = LDMMeta(
            dit=dit,
            diffusion=diffusion_config(self.hyper),
            latent_std=self._latent_std(),
            sample_weights="raw",
        )
        entries = [*dit_entries(dit), *condition_entries(dit)]
        self.trees["params"] = self.reader.read(entries, DiT, dit)
        self.trees["vae"] = vae_tree
        return self._meta("train_ldm", vae, ldm=ldm)

    def _predictor(self) -> ModelMeta:
        sizes = self._vae_sizes(self.state.below("vae."), self.hyper.get("vae"))
        predictor = predictor_sizes(self.state, self.hyper, sizes)
        entries = predictor_entries()
        self.trees["params"] = self.reader.read(entries, Predictor, predictor)
        self.trees["vae"] = self.reader.read(vae_entries(sizes, "vae."), VAE, sizes)
        return self._meta("train_predictor", sizes, predictor=predictor)

    def _meta(self, stage: str, vae: VAESizes, **others: Any) -> ModelMeta:
        return ModelMeta(stage=stage, vae=vae, size_table=self._size_table(), config={}, **others)

    def _vae_sizes(self, state: State, module: Any) -> VAESizes:
        """Sizes of a VAE whose modules the file should hold."""
        modules = (part_of(module, "encoder"), part_of(module, "decoder"))
        try:
            return vae_sizes(state, *modules, heads=self.options.vae_heads)
        except HeadsUnknownError:
            sizes = vae_sizes(state, heads=(1, 1))
            advice = (
                'save it again with hyper_parameters = {"encoder": {"nhead": n}, "decoder": '
                '{"nhead": n}} (for a predictor, below "vae")'
            )
            return with_heads(sizes, published_heads(sizes, self.report, advice=advice))

    def _size_table(self) -> tuple[int, ...]:
        """Size table of the options, of a file of this package, or of MP-20."""
        if self.options.size_table:
            return self.options.size_table
        own = own_entry(self.file.content).get("size_table")
        if own is None:
            return published_size_table(DEFAULT_SIZE_TABLE)
        try:
            return read_size_table(own)
        except ValueError as error:
            raise CheckpointError(f"its size_table is wrong: {error}") from error

    def _latent_std(self) -> float:
        if LATENT_STD not in self.state:
            self.report.assumptions.append("it holds no latent_std: 1 is used")
            return 1.0
        shape = self.state.tensors[LATENT_STD].shape
        if shape not in ((), (1,)):
            raise CheckpointError(f"its latent_std has the shape {shape}; it must be one number")
        value = float(self.reader.take(Entry(LATENT_STD, LATENT_STD)).reshape(()))
        if not np.isfinite(value) or value <= 0:
            raise CheckpointError(f"its latent_std is {value}; it must be more than 0")
        return value
